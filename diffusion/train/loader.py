"""Batches of a store by explicit indices.

Which images a step sees is the caller's to draw, so nothing here is random or stateful, and a resumed
training reads the same images.
"""

import numpy as np
import torch
from torch import Tensor

from diffusion.images.store import ImageStore
from diffusion.system.device_transfer import to_device

DEVICE_SHARE = 0.25  # of a GPU's free memory that a data set may take


class ImageLoader:
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
            return self._resident[to_device(rows, self.device)]
        batch = torch.empty((len(rows), *self._images.shape[1:]), dtype=torch.uint8, pin_memory=self._cuda)
        np.take(self._images, rows.numpy(), axis=0, out=batch.numpy(), mode="clip")  # releases the GIL
        return batch.to(self.device, non_blocking=self._cuda).permute(0, 3, 1, 2).contiguous()

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
