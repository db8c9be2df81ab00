"""Samplers as generators, and the driver that runs one of them.

A sampler says what it wants to know of x_t and is sent the answer, as often as it needs. So it knows neither
networks nor guidance, and what drives it may run many side by side and ask for all of them at once: rows of
asks are joined by `torch.cat`, their times as a tensor of rows.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffusion.process.condition import Condition
from diffusion.process.denoiser import Denoiser
from diffusion.process.denoiser_output import Prediction
from diffusion.process.time_grid import TimeGrid
from diffusion.sample.nan_guard import NaNGuard


class DenoiserCall(NamedTuple):
    """A sampler's question: what is x (B, C, H, W) at the time `t`, the same for all rows?"""

    x: Tensor
    t: int | float


@dataclass(frozen=True)
class Step:
    """Where a walk stands: `done` of `total` steps, x_t after them, and the x̂_0 they were made from."""

    done: int
    total: int
    x: Tensor
    x0_hat: Tensor


Trajectory = Generator[DenoiserCall | Step, Prediction | None, None]
"""Yields Ask, to be sent a Prediction, and after each step Step, to be sent None; the last one has x_0."""


class Sampler(Protocol):
    """A way from x_T to x_0. What it computes by beside images are plain numbers: no step waits for a GPU."""

    def __call__(self, grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
        """The walk from `x` along the grid; `noise` gives standard-normal z, shaped as x, on its device.

        UsageError where the grid does not allow it, before the first Ask.
        """


class SampleResult(NamedTuple):
    """Where a walk ended, (B, C, H, W), and how often it asked."""

    x: Tensor
    asked: int


@torch.no_grad()
def run_sampler(
    walk: Trajectory,
    denoiser: Denoiser,
    condition: Condition,
    callback: Callable[[Step], object] | None = None,
    watch: NaNGuard | None = None,
) -> SampleResult:
    """Answer a walk's questions until it ends; `callback` sees every step and may raise to stop.

    NonFiniteError, in the words of `watch`, where an answer or a step is NaN or infinite.
    """
    watch = watch or NaNGuard()
    asked, at, t, x = 0, 1, 0.0, None
    event = next(walk, None)
    while event is not None:
        answer = None
        if isinstance(event, DenoiserCall):
            t = event.t
            answer = denoiser(event.x, t, condition)
            watch.see(at, t, *answer)
            asked += 1
        else:
            x, at = event.x, event.done + 1
            watch.see(event.done, t, x)
            if callback:
                callback(event)
        event = sent(walk, answer)
    watch.end()
    assert x is not None, "a walk has at least one step"
    return SampleResult(x, asked)


def sent(walk: Trajectory, answer: Prediction | None) -> DenoiserCall | Step | None:
    """What the walk yields next; None at its end."""
    try:
        return walk.send(answer)
    except StopIteration:
        return None
