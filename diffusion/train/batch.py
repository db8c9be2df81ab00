"""All that is random of a training step, of each row of the batch from (seed, step, row) alone.

So a process, or a micro-batch, draws its own rows and no others, and whoever draws a row draws the same.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from diffusion.images.pixels import to_model
from diffusion.process.noise import counter_generator
from diffusion.process.timestep_samplers import UniformSampler
from diffusion.system.device_transfer import float64_device, to_device
from diffusion.system.threads import prefetch
from diffusion.train.augmentation import augment
from diffusion.train.epochs import epoch_rows
from diffusion.train.loader import ImageLoader
from diffusion.train.plan import TrainPlan

WHOLE = slice(None)


@dataclass(frozen=True)
class Batch:
    """What a step learns from: images in [−1, 1], labels with some dropped, timesteps, weights and noise.

    `augmentation` (B, 9) is how the images were transformed, where they were.
    """

    x_0: Tensor
    labels: Tensor | None
    index: Tensor
    weights: Tensor
    noise: Tensor
    augmentation: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.x_0, self.labels, self.index, self.weights, self.noise, self.augmentation))

    def split(self, size: int) -> Iterator["Batch"]:
        """The batch in parts of at most `size` images, in order."""
        for start in range(0, len(self.index), size):
            yield self._of(slice(start, start + size))

    def divide(self, count: int) -> Iterator["Batch"]:
        """The batch in `count` parts, in order, whose sizes differ by at most one image."""
        rows = len(self.index)
        for part in range(count):
            yield self._of(slice(part * rows // count, (part + 1) * rows // count))

    def _of(self, rows: slice) -> "Batch":
        return Batch(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]


def draw_batch(
    plan: TrainPlan,
    sampler: UniformSampler,
    data: ImageLoader,
    step: int,
    share: slice = WHOLE,
    purpose: str = "train",
) -> Batch:
    """The `share` of step `step`'s batch, on the data's device; trainings of two purposes share no draw.

    Step k sees the images at the places k·B … (k+1)·B − 1 of a walk through the data, epoch after epoch.
    """
    seed, size, spec, device = plan.train.seed, plan.train.batch_size, plan.network, data.device
    drawn = range(size)[share]
    places = range(step * size + drawn.start, step * size + drawn.stop)
    rows = epoch_rows(purpose, seed, places, len(data))
    (flips, dropped, times), noise = _draw_rows(
        (purpose, seed, step), drawn, (spec.in_channels, spec.image_size, spec.image_size)
    )
    images, told = data[rows], None
    if plan.data.flip:
        images = torch.where(to_device(flips < 0.5, device)[:, None, None, None], images.flip(3), images)
    images = to_model(images)
    if plan.augment:
        images, told = augment(images, plan.augment, (purpose, seed, step), drawn)
    labels = None
    if spec.num_classes:
        assert data.labels is not None, "plan_training() refuses a conditional model without labels"
        labels = torch.from_numpy(data.labels[rows.numpy()])
        if spec.null_class:
            labels = torch.where(dropped < plan.p_uncond, spec.num_classes, labels)
        labels = to_device(labels, device)
    index, weights = sampler.draw(times)
    index = to_device(index, float64_device(device))  # where the process has its tables
    return Batch(images, labels, index, to_device(weights, device), to_device(noise, device), told)


def _draw_rows(name: tuple[str, int, int], rows: range, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """What is random of each row: (3, rows) float64 uniforms in [0, 1) and ε (rows, *shape)."""
    uniforms, noise = torch.empty(len(rows), 3, dtype=torch.float64), torch.empty(len(rows), *shape)
    for row, numbers, image in zip(rows, uniforms, noise, strict=True):
        source = counter_generator(*name, row)
        numbers.uniform_(generator=source)  # all of them, used or not: what follows stays in its place
        image.normal_(generator=source)
    return uniforms.T.contiguous(), noise


def batches(
    plan: TrainPlan,
    sampler: UniformSampler,
    data: ImageLoader,
    steps: range,
    share: slice = WHOLE,
    purpose: str = "train",
) -> Generator[Batch, None, None]:
    """The steps' batches in order; on a GPU two are drawn ahead, unless a draw needs the losses before it."""
    draws = (partial(draw_batch, plan, sampler, data, step, share, purpose) for step in steps)
    if data.device.type != "cuda" or sampler.learns:
        return (draw() for draw in draws)
    return prefetch(draws, data.device)
