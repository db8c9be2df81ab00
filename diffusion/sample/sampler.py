"""Samplers as generators, and the driver that runs them.

A sampler yields a call of the denoiser and receives the prediction, as often as it needs. So it depends on
neither networks nor guidance, and an engine may run many samplers and batch their calls: x is joined by
`torch.cat`, times as a tensor of rows.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.images.pixels import to_uint8
from diffusion.process.denoiser import Condition, Denoiser, Prediction
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.system.errors import DiffctlError
from diffusion.system.registry import load_reference

Loss = Callable[[Tensor], Tensor]
"""x̂_0 (B, C, H, W) → (B,) losses, each of its own image."""


class DenoiserCall(NamedTuple):
    """A sampler's request for the prediction of x (B, C, H, W) at the time `t`, the same for all rows.

    With a `loss` of x̂_0 the prediction has its gradient for x.
    """

    x: Tensor
    t: int | float
    loss: Loss | None = None

    @property
    def nfe(self) -> int:
        """NFE: 1, and 1 for a backward pass, which costs about as much without gradients of weights."""
        return 1 if self.loss is None else 2


@dataclass(frozen=True)
class Step:
    """A step of a sampler: `done` of `total` steps, x_t after them, and the x̂_0 that x_t was made from."""

    done: int
    total: int
    x: Tensor
    x0_hat: Tensor


Trajectory = Generator[DenoiserCall | Step, Prediction, None]
"""Yields each DenoiserCall, to receive its Prediction, and each Step. The last x is x_0."""


Sampler = Callable[[TimeGrid, Tensor, Callable[[], Tensor]], Trajectory]
"""(grid, x, noise) → the trajectory from x along the grid; UsageError, at its start, if it does not fit.

`noise` returns standard-normal z, shaped as x, on its device. Coefficients are plain numbers, computed on the
host, so that no step waits for a GPU.
"""


class CustomTrajectory(NamedTuple):
    """Trajectories that are not the settings' sampler's from the images' noise.

    `samplers` returns the sampler of some of the images, a slice of them. They begin at `start`
    (B, C, H, W), None for the images' noise. `end` converts their ends into the result. `nfe` is that of an
    image, by default that of the settings.
    """

    samplers: Callable[[slice], Sampler]
    start: Tensor | None = None
    end: Callable[[Tensor], Tensor] = to_uint8
    nfe: int | None = None


def build_sampler(settings: SampleSettings) -> Sampler:
    """Return the sampler that the settings name."""
    sampler: Sampler = load_reference(SAMPLERS[settings.sampler].builder)(settings)
    return sampler


def adds_noise(settings: SampleSettings) -> bool:
    """Return whether the steps of the sampler with these settings draw noise."""
    entry = SAMPLERS[settings.sampler]
    if entry.uses_eta:
        return settings.eta > 0
    if entry.noise_option is None:
        return entry.for_consistency and settings.steps > 1
    return bool(entry.checked_options(settings.sampler_options)[entry.noise_option])


class SamplerDriver:
    """Advance a trajectory from call to call: `call` is the pending one, None at the end.

    `nfe` is the NFE of the answered calls, `step` is the number of the current step, from 1. `x` is that of
    the last step.
    """

    def __init__(self, trajectory: Trajectory) -> None:
        first = next(trajectory)
        assert isinstance(first, DenoiserCall), "a trajectory begins with a call"
        self._trajectory = trajectory
        self.call: DenoiserCall | None = first
        self.nfe, self.step = 0, 1
        self.x: Tensor | None = None

    def advance(self, prediction: Prediction) -> list[Step]:
        """Answer the pending call; return the steps up to the next one."""
        assert self.call is not None, "a trajectory at its end has no call"
        self.nfe += self.call.nfe
        steps: list[Step] = []
        try:
            event = self._trajectory.send(prediction)
            while isinstance(event, Step):
                steps.append(event)
                self.step, self.x = event.done + 1, event.x
                event = next(self._trajectory)
            self.call = event
        except StopIteration:
            self.call = None
        return steps


class NonFiniteError(DiffctlError):
    """A prediction, or what was computed from it, is NaN or infinite."""


class NaNGuard:
    """Check each step's numbers; raise NonFiniteError with the first step that has NaN or infinity.

    Clipping would hide them: an infinite x̂_0 becomes a black or a white image.

    On a CPU it raises at that step, elsewhere `raise_pending` does at the end, since reading the result at
    each step would wait for the device. `name` describes a row. The `networks`, by their names in messages,
    and whether they are `guided` decide the reason and the remedy.
    """

    def __init__(
        self,
        name: Callable[[int], str] = "row {}".format,
        networks: Mapping[str, nn.Module] | None = None,
        guided: bool = False,
    ) -> None:
        self._name, self._networks, self._guided = name, networks or {}, guided
        self._checks: list[tuple[int, float, Tensor]] = []  # step, time, and which rows (B,) were finite

    def check(self, step: int, t: float, *parts: Tensor | None) -> None:
        """Check (B, …) parts, all on one device, of a step, counted from 1, at the time `t`."""
        rows = [part.reshape(len(part), -1).isfinite().all(1) for part in parts if part is not None]
        finite = torch.stack(rows).all(0)
        self._checks.append((step, t, finite))
        if finite.device.type == "cpu":
            self.raise_pending()

    def raise_pending(self) -> None:
        """Raise for the checks that have not been read yet; call it after the last step."""
        checks, self._checks = self._checks, []
        finite = torch.stack([rows for _, _, rows in checks]).cpu() if checks else torch.ones(1, 1)
        if finite.all():
            return
        first, row = finite.logical_not().nonzero()[0].tolist()
        step, t, _ = checks[first]
        raise NonFiniteError(
            f"{self._name(row)} is NaN or infinite from step {step} on (t = {t:g}): {self._reason()}"
        )

    def _reason(self) -> str:
        """Return where NaN or infinity comes from, and a remedy."""
        if not self._networks:
            return "check the input"
        for label, network in self._networks.items():
            for name, weight in network.state_dict().items():
                if not weight.isfinite().all():
                    return f"so are weights of the {label} ({name}), so use another one"
        remedy = "lower the guidance" if self._guided else "train with a lower train.lr"
        return f"the weights are finite, but what they give is too large: {remedy}"


def predict(
    denoiser: Denoiser, x: Tensor, t: Tensor | float, condition: Condition, loss: Loss | None = None
) -> Prediction:
    """Return the prediction, detached, with the gradient of the loss of x̂_0 for x, if there is a loss.

    The rows of a network in eval mode do not depend on each other, so one gradient has that of every row.
    """
    if loss is None:
        return denoiser(x, t, condition)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        prediction = denoiser(x, t, condition)
        (gradient,) = torch.autograd.grad(loss(prediction.x0).sum(), x)
    parts = (None if part is None else part.detach() for part in prediction)
    return Prediction(*parts)._replace(gradient=gradient)  # type: ignore[arg-type]


class SampleResult(NamedTuple):
    """The end of a trajectory, (B, C, H, W), and its NFE, without those of guidance."""

    x: Tensor
    nfe: int


@torch.no_grad()
def run_sampler(
    trajectory: Trajectory,
    denoiser: Denoiser,
    condition: Condition,
    callback: Callable[[Step], object] | None = None,
    guard: NaNGuard | None = None,
) -> SampleResult:
    """Run a trajectory to its end; `callback` receives every step and may raise to stop.

    NonFiniteError, worded by `guard`, where a prediction or a step is NaN or infinite.
    """
    guard = guard or NaNGuard()
    driver = SamplerDriver(trajectory)
    while driver.call is not None:
        x, t, loss = driver.call
        prediction = predict(denoiser, x, t, condition, loss)
        guard.check(driver.step, t, *prediction)
        for step in driver.advance(prediction):
            guard.check(step.done, t, step.x)
            if callback:
                callback(step)
    guard.raise_pending()
    assert driver.x is not None, "a trajectory has at least one step"
    return SampleResult(driver.x, driver.nfe)
