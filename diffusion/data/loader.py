"""Batches of a store by explicit indices.

Which images a step sees is the caller's to draw, so nothing here is random or stateful, and a resumed
training reads the same images.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.data.store import ImageStore

DEVICE_SHARE = 0.25  # of a GPU's free memory that a data set may take


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
        self._images = store.images
        self._cuda = self.device.type == "cuda"
        self._stream: Any = torch.cuda.Stream(self.device) if self._cuda else None  # type: ignore[no-untyped-call]
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
        return self._ready(*self._gather(rows))

    def prefetch(self, draws: Iterable[Tensor], depth: int = 2) -> Iterator[Tensor]:
        """The batches of `draws`, in order, while `depth` further ones are gathered by background threads."""
        with ThreadPoolExecutor(depth, thread_name_prefix="batches") as pool:
            coming: deque[Future[tuple[Tensor, Any]]] = deque()
            for rows in draws:
                coming.append(pool.submit(self._gather, rows))
                if len(coming) > depth:
                    yield self._ready(*coming.popleft().result())
            while coming:
                yield self._ready(*coming.popleft().result())

    def _gather(self, rows: Tensor) -> tuple[Tensor, Any]:
        """The batch, and the event on the loader's stream after which it may be used (None on the CPU)."""
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} of a set of {len(self)} images")
        if self._resident is not None:
            return self._resident[rows.to(self.device, non_blocking=True)], None
        batch = torch.empty((len(rows), *self._images.shape[1:]), dtype=torch.uint8, pin_memory=self._cuda)
        np.take(self._images, rows.numpy(), axis=0, out=batch.numpy(), mode="clip")  # releases the GIL
        if not self._cuda:
            return _nchw(batch), None
        with torch.cuda.stream(self._stream):
            batch = _nchw(batch.to(self.device, non_blocking=True))
            return batch, self._stream.record_event()

    def _ready(self, batch: Tensor, event: Any) -> Tensor:
        """Let the caller's stream wait for the copy, and keep the memory until that stream has used it."""
        if event is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(event)
            batch.record_stream(stream)
        return batch

    def _load(self) -> Tensor:
        whole = torch.empty(
            (len(self), self._images.shape[3], *self._images.shape[1:3]),
            dtype=torch.uint8,
            device=self.device,
        )
        for start in range(0, len(self), 4096):
            block = torch.from_numpy(np.array(self._images[start : start + 4096]))
            whole[start : start + 4096] = block.to(self.device).permute(0, 3, 1, 2)
        return whole

    def _fits(self, size: int) -> bool:
        free, _ = torch.cuda.mem_get_info(self.device)
        return size <= DEVICE_SHARE * free


def _nchw(batch: Tensor) -> Tensor:
    return batch.permute(0, 3, 1, 2).contiguous()
