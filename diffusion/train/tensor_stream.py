"""safetensors written a tensor at a time: a large state is never in memory a second time."""

import json
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

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
