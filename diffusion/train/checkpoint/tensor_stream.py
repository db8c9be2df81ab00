"""Write and read safetensors one tensor at a time, so that a large state is never in memory twice."""

import json
import math
import weakref
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import IO, Annotated, NamedTuple, Protocol

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from diffusion.model.weights_header import DTYPE_NAMES
from diffusion.system.errors import DiffctlError
from diffusion.system.json_files import parse_json

CHANGES_RESULTS = False  # diffusion/code_digest.py

DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
MAX_HEADER_BYTES = 64 * 2**20  # a tensor takes about a hundred bytes
MAX_NUMBERS = 2**50  # of a tensor, empty dimensions left out: what torch can count

Size = Annotated[int, Field(strict=True, ge=0)]


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, in a fixed order, each loaded when it is requested.

    `meta` has a tensor of the same shape and type on the meta device for each name. Lookups of names and
    `len` load nothing.
    """

    def __init__(self, meta: Mapping[str, Tensor]) -> None:
        self.meta = meta

    @abstractmethod
    def __getitem__(self, name: str) -> Tensor:
        """Load the tensor."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.meta)

    def __len__(self) -> int:
        return len(self.meta)

    def __contains__(self, name: object) -> bool:
        return name in self.meta


class LazySubset(LazyTensors):
    """Some of the `source`'s tensors under new names: `names` maps each new name to the source's."""

    def __init__(self, source: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        meta = meta_tensors(source)
        super().__init__({new: meta[old] for new, old in names.items()})
        self._source, self._names = source, names

    def __getitem__(self, name: str) -> Tensor:
        return self._source[self._names[name]]


def meta_tensors(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return shapes and types by name as meta tensors; load nothing."""
    if isinstance(tensors, LazyTensors):
        return tensors.meta
    return {name: tensor.detach().to("meta") for name, tensor in tensors.items()}


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> LazySubset:
    """Return the tensors whose names do not start with `prefix`."""
    return LazySubset(tensors, {name: name for name in tensors if not name.startswith(prefix)})


def split_parts(tensors: Mapping[str, Tensor]) -> dict[str, LazySubset]:
    """Group tensors called `part.name` by part."""
    names: dict[str, dict[str, str]] = {}
    for name in tensors:
        part, _, rest = name.partition(".")
        names.setdefault(part, {})[rest] = name
    return {part: LazySubset(tensors, of_part) for part, of_part in names.items()}


class Writable(Protocol):
    """An object to which bytes are written."""

    def write(self, data: memoryview | bytes, /) -> object:
        """Append the bytes."""


def write_tensors(file: Writable, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors in order, in the format that `safetensors.torch.load` reads.

    KeyError for an unsupported type.
    """
    header: dict[str, object] = {}
    at = 0
    for name, tensor in tensors.items():
        end = at + tensor.numel() * tensor.element_size()
        dtype = DTYPE_NAMES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors to 8 bytes
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


class _Entry(BaseModel, extra="forbid"):
    """A tensor's entry in the header."""

    dtype: str
    shape: Annotated[list[Size], Field(max_length=32)]
    data_offsets: tuple[Size, Size]


class _Location(NamedTuple):
    """Type and shape of a tensor and its bytes in the file."""

    dtype: torch.dtype
    shape: list[int]
    start: int
    length: int


class StoredTensors(LazyTensors):
    """The tensors in the first `size` bytes of an open file, read on request.

    The file is closed with the last reference. ValueError for an invalid file.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        weakref.finalize(self, file.close)
        self._file, self._locations = file, _locate_tensors(file, size)
        locations = self._locations.items()
        super().__init__(
            {name: torch.empty(at.shape, dtype=at.dtype, device="meta") for name, at in locations}
        )

    def __getitem__(self, name: str) -> Tensor:
        location = self._locations[name]
        data = torch.empty(location.length, dtype=torch.uint8)
        self._file.seek(location.start)
        if self._file.readinto(data.numpy().data) != location.length:  # type: ignore[attr-defined]
            raise OSError(f"the file ended within {name}")
        return data.view(location.dtype).reshape(location.shape)


def _locate_tensors(file: IO[bytes], size: int) -> dict[str, _Location]:
    """Return the tensors' places by the header; ValueError unless they fill the file without a gap."""
    length = int.from_bytes(file.read(8), "little")
    at = 8 + length
    if length > MAX_HEADER_BYTES or at > size:
        raise ValueError(f"a header of {length:,} bytes")
    try:
        entries = parse_json(file.read(length), dict[str, _Entry], "its header")
    except DiffctlError as error:
        raise ValueError(str(error)) from None
    found, start = {}, at
    for name, entry in sorted(entries.items(), key=lambda one: one[1].data_offsets):
        begin, end = entry.data_offsets
        if entry.dtype not in DTYPES or math.prod(max(1, side) for side in entry.shape) > MAX_NUMBERS:
            raise ValueError(f"a tensor of {entry.dtype} {entry.shape}")
        dtype = DTYPES[entry.dtype]
        if at + begin != start or end - begin != math.prod(entry.shape) * dtype.itemsize:
            raise ValueError("its tensors are not contiguous")
        found[name] = _Location(dtype, entry.shape, start, end - begin)
        start = at + end
    if start != size:
        raise ValueError("its tensors do not fill the file")
    return found
