"""safetensors written and read a tensor at a time: a large state is never in memory a second time."""

import json
import math
import weakref
from collections.abc import Mapping
from typing import IO, Annotated, NamedTuple, Protocol

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from diffusion.system.errors import DiffctlError
from diffusion.system.json_files import parse_json
from diffusion.train.checkpoint.lazy_tensors import LazyTensors

KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
TYPES = {kind: dtype for dtype, kind in KINDS.items()}
MAX_HEADER_BYTES = 64 * 2**20  # bytes; a tensor takes about a hundred
MAX_NUMBERS = 2**50  # of a tensor, empty sides left out: what torch can count

Size = Annotated[int, Field(strict=True, ge=0)]


class Writable(Protocol):
    """What takes bytes."""

    def write(self, data: memoryview | bytes, /) -> object:
        """Take what comes next."""


def write_tensors(file: Writable, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors in their order, as `safetensors.torch.load` reads them.

    KeyError for a tensor of a type that no training has.
    """
    header: dict[str, object] = {}
    at = 0
    for name, tensor in tensors.items():
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


class _Entry(BaseModel, extra="forbid"):
    """What a header says of a tensor."""

    dtype: str
    shape: Annotated[list[Size], Field(max_length=32)]
    data_offsets: tuple[Size, Size]


class _Place(NamedTuple):
    """Where a tensor lies in a file, and as what."""

    dtype: torch.dtype
    shape: list[int]
    start: int
    length: int


class StoredTensors(LazyTensors):
    """The tensors of a file, each read from it whenever it is asked for; `size` bytes of it are theirs.

    The file is closed when nobody needs it any more. ValueError where it is no such file.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        weakref.finalize(self, file.close)
        self._file, self._places = file, _places(file, size)
        places = self._places.items()
        super().__init__({name: torch.empty(at.shape, dtype=at.dtype, device="meta") for name, at in places})

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        data = torch.empty(place.length, dtype=torch.uint8)
        self._file.seek(place.start)
        if self._file.readinto(data.numpy().data) != place.length:  # type: ignore[attr-defined]
            raise OSError(f"it ended within {name} while it was read")
        return data.view(place.dtype).reshape(place.shape)


def _places(file: IO[bytes], size: int) -> dict[str, _Place]:
    """Where the tensors lie, by the header; ValueError unless they fill the rest without a gap, in order."""
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
        if entry.dtype not in TYPES or math.prod(max(1, side) for side in entry.shape) > MAX_NUMBERS:
            raise ValueError(f"a tensor of {entry.dtype} {entry.shape}")
        dtype = TYPES[entry.dtype]
        if at + begin != start or end - begin != math.prod(entry.shape) * dtype.itemsize:
            raise ValueError("its tensors do not lie one behind the other")
        found[name] = _Place(dtype, entry.shape, start, end - begin)
        start = at + end
    if start != size:
        raise ValueError("its tensors do not end where it does")
    return found
