"""The batch of a training step. All random numbers of a row come from (seed, step, row) alone.

So each rank, and each micro-batch, draws its own rows only, and every one draws the same for a row.
"""

from collections.abc import Generator, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diffusion.images.pixels import to_model
from diffusion.model.network_registry import NetworkSpec
from diffusion.process.denoiser import add_noise, shrink
from diffusion.process.noise import counter_generator
from diffusion.process.objective import Batch
from diffusion.process.time_samplers import TimeSampler
from diffusion.system.devices import float64_device, to_device
from diffusion.system.threads import prefetch
from diffusion.train.augmentation import augment
from diffusion.train.plan import TrainPlan, build_task

if TYPE_CHECKING:
    from diffusion.images.store import ImageStore

WHOLE = slice(None)
DEVICE_SHARE = 0.25  # of a GPU's free memory that a data set may take
COPY_ROWS = 4096  # copied to the device at a time


class ImageLoader:
    """The images of a store as uint8 (B, C, H, W) batches on a device, by explicit row numbers.

    On a GPU a set of at most a quarter of the free memory is copied there once; rows of a larger one are
    gathered from the memory map through pinned memory. On a CPU the memory map is used.
    """

    def __init__(self, store: "ImageStore", device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.labels = store.labels
        self._images = store.images
        self._is_cuda = self.device.type == "cuda"
        free = torch.cuda.mem_get_info(self.device)[0] if self._is_cuda else 0
        self.resident = self._copy_to_device() if store.images.nbytes <= DEVICE_SHARE * free else None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the images of `rows` (int64, on the CPU, in range) in that order."""
        if self.resident is not None:
            return self.resident[to_device(rows, self.device)]
        batch = torch.empty((len(rows), *self._images.shape[1:]), dtype=torch.uint8, pin_memory=self._is_cuda)
        np.take(self._images, rows.numpy(), axis=0, out=batch.numpy(), mode="clip")  # releases the GIL
        return batch.to(self.device, non_blocking=self._is_cuda).permute(0, 3, 1, 2).contiguous()

    def _copy_to_device(self) -> Tensor:
        count, height, width, channels = self._images.shape
        images = torch.empty((count, channels, height, width), dtype=torch.uint8, device=self.device)
        for start in range(0, count, COPY_ROWS):
            rows = torch.from_numpy(np.array(self._images[start : start + COPY_ROWS]))
            images[start : start + COPY_ROWS] = rows.to(self.device).permute(0, 3, 1, 2)
        if self._is_cuda:  # other streams read it
            torch.cuda.synchronize(self.device)
        return images


class TensorLoader(ImageLoader):
    """The images of a tensor (N, C, H, W), uint8 or real in about [−1, 1], with labels (N,) or None."""

    def __init__(self, images: Tensor, labels: Tensor | None, device: torch.device) -> None:
        self.device, self.count = device, len(images)
        self.resident = images.to(device)
        self.labels = None if labels is None else labels.cpu().numpy()

    def __len__(self) -> int:
        return self.count


def epoch_rows(purpose: str, seed: int, places: range, count: int) -> Tensor:
    """Return the rows, (len(places),) int64 in [0, count), at these places of the sequence of epochs.

    Each epoch has every row once, in its own order. Place p is place p mod `count` of epoch p // `count`, so
    that a resume needs the place alone.
    """
    parts = []
    for epoch in range(places.start // count, -(-places.stop // count)):
        first, last = places.start - epoch * count, places.stop - epoch * count
        parts.append(_permutation(purpose, seed, epoch, count)[max(0, first) : last])
    return torch.cat(parts)


@lru_cache(maxsize=2)  # a batch, or a prefetched one, may span two epochs
def _permutation(purpose: str, seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=counter_generator(f"{purpose} epoch", seed, epoch))


def draw_batch(
    plan: TrainPlan, sampler: TimeSampler, data: ImageLoader, step: int, share: slice = WHOLE
) -> Batch:
    """Draw the `share` of a step's batch, on the data's device.

    Step k has the images at the places k·B … (k+1)·B − 1 of the sequence of epochs.
    """
    seed, size, spec, device = plan.train.seed, plan.train.batch_size, plan.network, data.device
    purpose = build_task(plan).steps_purpose
    name, drawn = (purpose, seed, step), range(size)[share]
    places = range(step * size + drawn.start, step * size + drawn.stop)
    rows = epoch_rows(purpose, seed, places, len(data))
    images, augmentation = data[rows], None
    (flips, dropped, times), noise = draw_rows(name, drawn, images.shape[1:])
    if plan.data.flip:
        images = torch.where(to_device(flips < 0.5, device)[:, None, None, None], images.flip(3), images)
    if images.dtype == torch.uint8:
        images = to_model(images)
    if plan.augment:
        images, augmentation = augment(images, plan.augment, name, drawn)
    labels = None
    if spec.num_classes:
        assert data.labels is not None, "plan_training() refuses a conditional model without labels"
        labels = torch.from_numpy(data.labels[rows.numpy()])
        if spec.null_class:
            labels = torch.where(dropped < plan.p_uncond, spec.num_classes, labels)
        labels = to_device(labels, device)
    if plan.process.stratified:
        times = stratified_uniforms(name, drawn, size)
    t, weights = sampler.draw(times)
    t = to_device(t, float64_device(device))  # where the process has its tables
    low_res = draw_low_res(images, spec, name, drawn)
    return Batch(
        images, labels, t, to_device(weights, device), to_device(noise, device), augmentation, *low_res
    )


def draw_low_res(
    images: Tensor, spec: NetworkSpec, name: tuple[str, *tuple[int, ...]], rows: range
) -> tuple[Tensor | None, Tensor | None]:
    """Return the low-resolution images that a network takes, with noise, and its levels; None for neither.

    A level is uniform up to the spec's `cond_noise`. Level and noise of each row come from (name, row) alone.
    """
    if spec.low_res_size is None:
        return None, None
    small = shrink(images, spec.low_res_size)
    if not spec.cond_noise:
        return small, None
    purpose, *numbers = name
    (shares,), noise = draw_rows((f"{purpose} low resolution", *numbers), rows, small.shape[1:], count=1)
    levels = to_device((spec.cond_noise * shares).float(), images.device)
    return add_noise(small, levels, to_device(noise, images.device)), levels


def draw_rows(
    name: tuple[str, *tuple[int, ...]], rows: range, shape: Sequence[int], count: int = 3
) -> tuple[Tensor, Tensor]:
    """Draw (count, rows) float64 uniforms in [0, 1) and ε (rows, *shape), each row from its own generator."""
    uniforms, noise = torch.empty(len(rows), count, dtype=torch.float64), torch.empty(len(rows), *shape)
    for row, numbers, image in zip(rows, uniforms, noise, strict=True):
        source = counter_generator(*name, row)
        numbers.uniform_(generator=source)  # all of them, used or not, so that later draws keep their place
        image.normal_(generator=source)
    return uniforms.T.contiguous(), noise


def stratified_uniforms(name: tuple[str, int, int], rows: range, count: int) -> Tensor:
    """Return (u + i/count) mod 1 for the rows i of a batch, float64, with one u for the whole step.

    The low-discrepancy sampler of VDM (Kingma et al. 2021, 2107.00630): each number alone is uniform, and
    each of `count` equal parts of [0, 1) has one.
    """
    purpose, *numbers = name
    shift = torch.empty((), dtype=torch.float64)
    shift.uniform_(generator=counter_generator(f"{purpose} strata", *numbers))
    return (shift + torch.arange(rows.start, rows.stop, dtype=torch.float64) / count) % 1


def batches(
    plan: TrainPlan, sampler: TimeSampler, data: ImageLoader, steps: range, share: slice = WHOLE
) -> Generator[Batch, None, None]:
    """Yield the steps' batches; on a GPU two are prefetched, unless a draw depends on the losses before."""
    draws = (partial(draw_batch, plan, sampler, data, step, share) for step in steps)
    if data.device.type != "cuda" or sampler.learns:
        return (draw() for draw in draws)
    return prefetch(draws, data.device)
