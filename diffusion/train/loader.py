"""Batches of a store by explicit indices, and work that is done ahead of its use.

Which images a step sees is the caller's to draw, so nothing here is random or stateful, and a resumed
training reads the same images.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from diffusion.images.store import ImageStore

DEVICE_SHARE = 0.25  # of a GPU's free memory that a data set may take

Made = TypeVar("Made", bound=Iterable[Tensor | None])


class Batches:
    """The images of a store as uint8 (B, C, H, W) batches on a device.

    On a GPU a set that takes at most a quarter of the free memory is copied there once; a larger one is
    gathered from the memory map through pinned memory. On the CPU the memory map itself serves.
    `resident` overrides the choice. The values are the same either way.
    """

    def __init__(
        self, store: ImageStore, device: torch.device | str, *, resident: bool | None = None
    ) -> None:
        self.device = torch.device(device)
        self.labels = store.labels
        self._images = store.images
        self._cuda = self.device.type == "cuda"
        if resident is None:
            resident = self._cuda and self._fits(store.images.nbytes)
        self._resident = self._load() if resident else None

    def __len__(self) -> int:
        return len(self._images)

    @property
    def resident(self) -> bool:
        """Whether the whole set lies on the device."""
        return self._resident is not None

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The images of `rows` (int64, on the CPU) in that order; IndexError for a row that is not there."""
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} of a set of {len(self)} images")
        if self._resident is not None:
            return self._resident[send(rows, self.device)]
        batch = torch.empty((len(rows), *self._images.shape[1:]), dtype=torch.uint8, pin_memory=self._cuda)
        np.take(self._images, rows.numpy(), axis=0, out=batch.numpy(), mode="clip")  # releases the GIL
        return batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()

    def _load(self) -> Tensor:
        whole = torch.empty(
            (len(self), self._images.shape[3], *self._images.shape[1:3]),
            dtype=torch.uint8,
            device=self.device,
        )
        for start in range(0, len(self), 4096):
            block = torch.from_numpy(np.array(self._images[start : start + 4096]))
            whole[start : start + 4096] = block.to(self.device).permute(0, 3, 1, 2)
        if self._cuda:  # other streams read it
            torch.cuda.synchronize(self.device)
        return whole

    def _fits(self, size: int) -> bool:
        free, _ = torch.cuda.mem_get_info(self.device)
        return size <= DEVICE_SHARE * free


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The CPU tensor on the device; to a GPU through pinned memory, and nobody waits for the copy."""
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def prefetch(
    draws: Iterable[Callable[[], Made]], device: torch.device | str, depth: int = 2
) -> Generator[Made, None, None]:
    """What the draws make, in order, while `depth` further ones are made by background threads.

    On a GPU they work on a stream of their own, for which the caller's stream waits before it uses a result.
    """
    device = torch.device(device)
    stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(device))  # a resident set may still be on its way

    def make(draw: Callable[[], Made]) -> tuple[Made, Any]:
        with ExitStack() as stack:
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))
            return draw(), stream.record_event() if stream is not None else None

    with _threads(depth, device) as pool:
        coming: deque[Future[tuple[Made, Any]]] = deque()
        for draw in draws:
            coming.append(pool.submit(make, draw))
            if len(coming) > depth:
                yield _ready(*coming.popleft().result())
        while coming:
            yield _ready(*coming.popleft().result())


def _threads(count: int, device: torch.device) -> ThreadPoolExecutor:
    """Threads that work on the device: each new one would begin on the first GPU, and pin memory for that."""
    if device.type != "cuda":
        return ThreadPoolExecutor(count, "batches")
    index = torch.cuda.current_device() if device.index is None else device.index
    return ThreadPoolExecutor(count, "batches", torch.cuda.set_device, (index,))


def _ready(made: Made, event: Any) -> Made:
    """Let the caller's stream wait for the copies, and keep their memory until that stream has used it."""
    if event is not None:
        stream = torch.cuda.current_stream()
        stream.wait_event(event)
        for tensor in made:
            if tensor is not None:
                tensor.record_stream(stream)
    return made
