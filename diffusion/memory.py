"""What a training step takes of the memory, which micro-batch fits, and what to say when none does."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from diffusion.errors import DiffctlError
from diffusion.shape import UNetSpec
from diffusion.unet import UNet

TRAIN_BYTES = 20  # of a parameter in training: weights, EMA, gradient and Adam's two moments, in fp32
REMEDY = (
    "lower train.microbatch (or set it to auto), set model.gradient_checkpointing: true, or make the model "
    "smaller"
)
STEP_SHARE = 0.8  # of a machine's memory that a step may take where nothing can be tried


def count_parameters(spec: UNetSpec) -> int:
    """How many numbers the network learns."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet(spec).parameters())


def step_bytes(spec: UNetSpec, images: int) -> int:
    """What a training step of that many images takes at most."""
    return count_parameters(spec) * TRAIN_BYTES + saved_bytes(spec, images)


@cache
def saved_bytes(spec: UNetSpec, batch: int) -> int:
    """Bytes that a forward pass of `batch` images keeps for the backward pass, in fp32.

    Fake tensors take the same kernels as real ones and hold no memory. On the meta device attention takes
    another path, which keeps what the real one does not.
    """
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage  # kept, so that its address is not used again
        return tensor

    with FakeTensorMode(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network = UNet(spec)
        x = torch.empty(batch, spec.in_channels, spec.image_size, spec.image_size)
        t = torch.empty(batch, dtype=torch.int64)
        network(x, t, t if spec.num_classes else None)
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    return sum(storage.nbytes() for address, storage in found.items() if address not in weights)


def fitting_microbatch(spec: UNetSpec, images: int, total: int) -> int:
    """The images, halved until a step of so many takes at most 80% of `total` bytes; at least 1.

    By the memory that there is, not by what is free now: the same machine always finds the same.
    """
    while images > 1 and step_bytes(spec, images) > STEP_SHARE * total:
        images = -(-images // 2)
    return images


def device_memory(device: torch.device) -> tuple[int, int]:
    """(total, free) bytes of the GPU, or of the machine for the CPU."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    import psutil

    memory = psutil.virtual_memory()
    return memory.total, memory.available


def is_shortage(error: RuntimeError) -> bool:
    """Whether a GPU's or the CPU's memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def shortage_told() -> Iterator[None]:
    """Turn what torch and numpy raise for a lack of memory into a sentence that says what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not is_shortage(error):
            raise
        raise DiffctlError(f"the memory does not suffice: {REMEDY}") from None
