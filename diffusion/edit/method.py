"""What methods share: the reverse step's noise, moves back to larger noise, and corrected predictions.

A builder of METHODS makes a Sampler of (settings, options, measurement, process). Its trajectory draws the
noise of its images only through the sampler's `noise`, so that an image depends on (seed, i, y_i) alone.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from diffusion.edit.operators import LinearOperator, Measurement
from diffusion.process.denoiser import Prediction
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.time_grid import GridStep, TimeGrid
from diffusion.protocol.edits import EditSettings, TravelOptions, check_method_settings
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampler import DenoiserCall, Sampler, Step, Trajectory
from diffusion.system.errors import UsageError
from diffusion.system.registry import load_reference

Correct = Callable[[DenoiserCall, Prediction], Prediction]
"""(call, its prediction) → the prediction that the sampler receives."""


def build_method(
    edit: EditSettings, settings: SampleSettings, measurement: Measurement, process: NoiseProcess
) -> Sampler:
    """Return the sampler of a method; UsageError for settings that do not fit it."""
    check_method_settings(edit, settings.sampler, settings.eta, settings.noise)
    if edit.entry.uses_gradient and settings.has_classifier:
        raise UsageError(f"method {edit.method} and a classifier exclude each other: leave out classifier")
    builder = load_reference(edit.entry.builder)
    sampler: Sampler = builder(settings, edit.options, measurement, process)
    return sampler


def operator_of(measurement: Measurement) -> LinearOperator:
    """Return the operator of a measurement, which the method's entry requires."""
    assert measurement.operator is not None, "the settings of an edit require an operator"
    return measurement.operator


def corrected(sampler: Sampler, correct: Correct) -> Sampler:
    """Return the sampler with predictions that `correct` changes before it receives them."""

    def run(grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
        trajectory = sampler(grid, x, noise)
        event = next(trajectory, None)
        while event is not None:
            if isinstance(event, DenoiserCall):
                prediction = correct(event, (yield event))
                try:
                    event = trajectory.send(prediction)
                except StopIteration:
                    return
            else:
                yield event
                event = next(trajectory, None)

    return run


class Move(NamedTuple):
    """A move of a path through noise levels: the reverse `step`, or, where `back`, `step` undone by noise."""

    step: GridStep
    back: bool = False


def travelled_path(grid: TimeGrid, options: TravelOptions) -> list[Move]:
    """Return the reverse steps of a grid with its moves back to larger noise (RePaint, alg. 1 and app. B).

    One step before the image, and after each `travel_length` further steps, the path goes that many steps
    back and down again, `travel_repeat` − 1 times. As in the authors' code, the first steps have none.
    """
    steps = grid.reverse_steps()
    length = options.travel_length

    def moves() -> Iterator[Move]:
        left = len(steps)  # the steps to the image
        returns = dict.fromkeys(range(1, len(steps) - length + 1, length), options.travel_repeat - 1)
        while left:
            yield Move(steps[len(steps) - left])
            left -= 1
            if returns.get(left, 0):
                returns[left] -= 1
                for _ in range(length):
                    yield Move(steps[len(steps) - left - 1], back=True)
                    left += 1

    return list(moves())


def renoised(step: GridStep, x: Tensor, noise: Callable[[], Tensor]) -> Tensor:
    """Return a sample of q(x_t | x_t') for x at the end of a step: α/α'·x + √β·z (DDPM eq. 2)."""
    return step.alpha / step.alpha_prev * x + math.sqrt(step.beta) * noise()


def travelled(
    grid: TimeGrid,
    x: Tensor,
    noise: Callable[[], Tensor],
    options: TravelOptions,
    reverse: Callable[[GridStep, Tensor, Prediction], tuple[Tensor, Tensor]],
) -> Trajectory:
    """Return the trajectory along `travelled_path`; `reverse` returns (x', x̂_0) after a reverse step."""
    path = travelled_path(grid, options)
    x0_hat = x
    for done, move in enumerate(path, start=1):
        if move.back:
            x = renoised(move.step, x, noise)
        else:
            prediction = yield DenoiserCall(x, move.step.t)
            x, x0_hat = reverse(move.step, x, prediction)
            yield Step(done, len(path), x, x0_hat)
