"""All that is random of a training step, from (seed, step) alone, and a process's share of it."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from diffusion.data.loader import Batches, prefetch, send
from diffusion.images import to_model
from diffusion.random import generator
from diffusion.resolve import TrainPlan
from diffusion.timesteps import UniformSampler

WHOLE = slice(None)


@dataclass(frozen=True)
class Batch:
    """What a step learns from: images in [−1, 1], labels with some dropped, timesteps, weights and noise."""

    x_0: Tensor
    labels: Tensor | None
    index: Tensor
    weights: Tensor
    noise: Tensor

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.x_0, self.labels, self.index, self.weights, self.noise))

    def split(self, size: int) -> Iterator["Batch"]:
        """The batch in parts of at most `size` images, in order."""
        for start in range(0, len(self.index), size):
            rows = slice(start, start + size)
            labels = None if self.labels is None else self.labels[rows]
            tensors = (self.x_0[rows], labels, self.index[rows], self.weights[rows], self.noise[rows])
            yield Batch(*tensors)


def draw_batch(
    artefact: TrainPlan, sampler: UniformSampler, data: Batches, step: int, share: slice = WHOLE
) -> Batch:
    """The `share` of step `step`'s batch, on the data's device.

    Everything is drawn for the whole batch, so that a process's images, t and ε are the same however many
    processes there are.
    """
    train, device = artefact.train, data.device
    source = generator("train", train.seed, step)
    rows = torch.randint(len(data), (train.batch_size,), generator=source)
    flips = torch.rand(train.batch_size, generator=source) < 0.5
    dropped = torch.rand(train.batch_size, generator=source) < train.p_uncond
    index, weights = sampler.draw(train.batch_size, source)
    spec = artefact.network
    shape = (train.batch_size, spec.in_channels, spec.image_size, spec.image_size)
    noise = torch.randn(shape, generator=source)[share]
    images = data[rows[share]]
    if artefact.data.flip:
        images = torch.where(send(flips[share], device)[:, None, None, None], images.flip(3), images)
    labels = None
    if spec.num_classes:
        assert data.labels is not None, "resolve() refuses a conditional model without labels"
        labels = torch.from_numpy(data.labels[rows[share].numpy()])
        labels = send(torch.where(dropped[share], spec.num_classes, labels), device)
    index, weights, noise = (send(part, device) for part in (index[share], weights[share], noise))
    return Batch(to_model(images), labels, index, weights, noise)


def batches(
    artefact: TrainPlan, sampler: UniformSampler, data: Batches, steps: range, share: slice = WHOLE
) -> Generator[Batch, None, None]:
    """The steps' batches in order; on a GPU two are drawn ahead, unless a draw needs the losses before it."""
    draws = (partial(draw_batch, artefact, sampler, data, step, share) for step in steps)
    if data.device.type != "cuda" or sampler.learns:
        return (draw() for draw in draws)
    return prefetch(draws, data.device)
