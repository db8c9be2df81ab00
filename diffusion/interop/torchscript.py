"""Read the tensors of a TorchScript file without executing anything from it.

The file is a zip archive: NAME/data.pkl is a pickle of nested modules, and NAME/data/N has the content of
tensors. Here `find_class` admits only the names that modules of tensors need.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

MODULES = "__torch__"  # the package of all classes in the archive
DTYPES = {
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}


class _Module:
    """A module of the archive: its attributes, among them tensors and further modules."""


def read_torchscript(data: bytes) -> dict[str, Tensor]:
    """Return the tensors by their names in a state dict; ValueError for anything but TorchScript."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            top = next(
                name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")
            )
            root = top.removesuffix("data.pkl")
            pickled = _ScriptUnpickler(archive.read(top), lambda key: archive.read(f"{root}data/{key}"))
            return dict(_tensors(pickled.load()))
    except StopIteration:
        raise ValueError("the archive has no data.pkl") from None
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        LookupError,
        RuntimeError,
        TypeError,
        EOFError,
    ) as error:
        raise ValueError(str(error)) from None


def _tensors(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module and of those in it."""
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")


class _ScriptUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, content: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self.content = content

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a class or function; UnpicklingError for one that is not admitted."""
        if module.split(".")[0] == MODULES:
            return _Module
        if module == "torch.jit._pickle":  # typed lists
            return list
        admitted: Mapping[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("collections", "OrderedDict"): OrderedDict,
            **{("torch", storage): dtype for storage, dtype in DTYPES.items()},
        }
        if (module, name) not in admitted:
            raise pickle.UnpicklingError(f"it requires {module}.{name}, which is refused")
        return admitted[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        """Return the content of a storage, ("storage", dtype, key, device, number)."""
        _, dtype, key, *_ = pid
        return torch.frombuffer(bytearray(self.content(key)), dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset).clone()
