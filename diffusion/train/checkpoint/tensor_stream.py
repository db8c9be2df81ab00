"""Write and read safetensors one tensor at a time, so that a large state is never in memory twice."""

import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import torch
from torch import Tensor

from diffusion.model.weights_header import DTYPE_NAMES
from diffusion.system.json_files import JsonObject, parse_json

CHANGES_RESULTS = False  # diffusion/code_digest.py

DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, in a fixed order; `load` returns one when it is requested.

    `meta` has a tensor of the same shape and type on the meta device for each name. Lookups of names and
    `len` load nothing.
    """

    def __init__(self, meta: Mapping[str, Tensor], load: Callable[[str], Tensor]) -> None:
        self.meta, self._load = meta, load

    def __getitem__(self, name: str) -> Tensor:
        return self._load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.meta)

    def __len__(self) -> int:
        return len(self.meta)

    def __contains__(self, name: object) -> bool:
        return name in self.meta


def meta_tensors(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return shapes and types by name as meta tensors; load nothing."""
    if isinstance(tensors, LazyTensors):
        return tensors.meta
    return {name: tensor.detach().to("meta") for name, tensor in tensors.items()}


def select_tensors(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> LazyTensors:
    """Return some tensors under new names: `names` maps each new name to the present one."""
    meta = meta_tensors(tensors)
    return LazyTensors({new: meta[old] for new, old in names.items()}, lambda name: tensors[names[name]])


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> LazyTensors:
    """Return the tensors whose names do not start with `prefix`."""
    return select_tensors(tensors, {name: name for name in tensors if not name.startswith(prefix)})


def split_parts(tensors: Mapping[str, Tensor]) -> dict[str, LazyTensors]:
    """Group tensors called `part.name` by part."""
    names: dict[str, dict[str, str]] = {}
    for name in tensors:
        part, _, rest = name.partition(".")
        names.setdefault(part, {})[rest] = name
    return {part: select_tensors(tensors, of_part) for part, of_part in names.items()}


def write_tensors(file: Any, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors in order, as safetensors; KeyError for an unsupported type."""
    header: dict[str, object] = {}
    at = 0
    for name, tensor in tensors.items():
        end = at + tensor.nbytes
        dtype = DTYPE_NAMES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors to 8 bytes
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        file.write(_as_bytes(tensor.detach().cpu().contiguous()))


def stored_tensors(file: IO[bytes], size: int) -> LazyTensors:
    """Return the tensors in the first `size` bytes of an open safetensors file, read on request.

    The file is closed with the last reference. ValueError or DiffctlError for an invalid header.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > size:
        raise ValueError(f"it has a header of {length:,} bytes")
    header = parse_json(file.read(length), JsonObject, "its header")
    try:
        meta = {
            name: torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]], device="meta")
            for name, entry in header.items()
        }
        starts = {name: 8 + length + int(entry["data_offsets"][0]) for name, entry in header.items()}
    except (LookupError, TypeError, ValueError, OverflowError, RuntimeError):
        raise ValueError("its header does not describe tensors") from None

    def load(name: str) -> Tensor:
        tensor = torch.empty_like(meta[name], device="cpu")
        file.seek(starts[name])
        if file.readinto(_as_bytes(tensor)) != tensor.nbytes:  # type: ignore[attr-defined]
            raise OSError(f"the file ended within {name}")
        return tensor

    tensors = LazyTensors(meta, load)
    weakref.finalize(tensors, file.close)
    return tensors


def _as_bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
