"""Noise processes over real time, with a network's input, targets and loss weights, and its denoiser.

x_t = α_t·x_0 + σ_t·ε with ε ~ N(0, I), for real t from `t_min` to `t_max`. A further process is a subclass
with its own α and σ, and an entry of PROCESSES.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.process.denoiser import (
    Condition,
    Network,
    Prediction,
    expand,
    expand_times,
    split_output,
    time_tensor,
)
from diffusion.process.loss_registry import LOSS_WEIGHTS
from diffusion.process.parameterization import PREDICTIONS
from diffusion.process.process_registry import PROCESSES, ProcessConfig
from diffusion.process.time_grid import NoisePoint, TimeGrid
from diffusion.system.devices import float64_device, to_device
from diffusion.system.errors import UsageError
from diffusion.system.registry import function_place, load_reference

MIN_DETERMINANT = 1e-12  # errors divided by less have squares beyond float32
BISECTIONS = 80  # halve any range of times to below the spacing of float64
DEFAULT_SIGMA_DATA = 0.5  # EDM's, of a process without data: a plan has the measured one
PROBES = 1001  # times at which a continuous process is checked


class NoiseProcess(ABC):
    """The process that a `process` section describes.

    A subclass sets `t_min` and `t_max`, the range of its real time; `sigma_min` and `sigma_max` are the noise
    levels between which sampling grids in σ lie. A discrete process is a `DiscreteProcess`
    (diffusion/process/discrete.py).
    """

    t_min: float
    t_max: float
    timesteps: int | None = None  # T of a discrete process

    def __init__(self, config: ProcessConfig) -> None:
        self.config = config
        self.sigma_data = config.sigma_data or DEFAULT_SIGMA_DATA
        self._predicted = PREDICTIONS[config.prediction]

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return α and σ (float64, shaped as `t`) on `float64_device(t.device)`, for t in [t_min, t_max].

        σ/α grows with t; σ is 0 nowhere, α at most at `t_max`.
        """

    @property
    def sigma_min(self) -> float:
        """The noise level at which a sampling grid in σ ends."""
        return float(self.noise_level(torch.tensor(self.t_min, dtype=torch.float64)))

    @property
    def sigma_max(self) -> float:
        """The noise level at which a sampling grid in σ begins; it is finite."""
        return float(self.noise_level(torch.tensor(self.t_max, dtype=torch.float64)))

    def noise_level(self, t: Tensor) -> Tensor:
        """Return σ/α of times, as `alpha_sigma`: the σ of unscaled images (Karras et al. 2022).

        For a variance-preserving process √((1−ᾱ)/ᾱ); ∞ where nothing of the image is left.
        """
        alpha, sigma = self.alpha_sigma(t)
        return sigma / alpha

    def log_snr(self, t: Tensor) -> Tensor:
        """Return λ = log α/σ of times, as `alpha_sigma`: half the logarithm of the signal-to-noise ratio."""
        alpha, sigma = self.alpha_sigma(t)
        return (alpha / sigma).log()

    def times_at(self, levels: Tensor) -> Tensor:
        """Return the real times with these noise levels σ/α, clamped to [t_min, t_max]: the inverse, float64.

        Here by bisection; a subclass may have a closed form.
        """
        levels = levels.to(float64_device(levels.device)).double()
        low, high = torch.full_like(levels, self.t_min), torch.full_like(levels, self.t_max)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            is_below = self.noise_level(middle) < levels
            low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
        high = torch.where(levels <= self.noise_level(torch.full_like(levels, self.t_min)), self.t_min, high)
        return torch.where(levels >= self.noise_level(torch.full_like(levels, self.t_max)), self.t_max, high)

    def grid(self, times: Sequence[int] | Sequence[float]) -> TimeGrid:
        """Return the tables along increasing times."""
        chosen = torch.tensor(times, dtype=torch.float64 if isinstance(times[0], float) else torch.int64)
        return TimeGrid(chosen, *self.alpha_sigma(chosen), self.locate)

    def locate(self, level: float) -> NoisePoint:
        """Return the time with a noise level σ/α, or the nearer end of the range, with its α and σ."""
        t = self.times_at(torch.tensor(level, dtype=torch.float64))
        return NoisePoint(float(t), *map(float, self.alpha_sigma(t)))

    def network_input(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network receives for x_t: the scaled image, and the time that it embeds.

        `t` has a time per row, (B,), or one for all, ().
        """
        if self._predicted.input_scale is not None:
            scale: Tensor = self._predicted.input_scale(*self.alpha_sigma(t), self.sigma_data)
            x = expand(scale, x) * x
        return x, self.embedded_time(t)

    def embedded_time(self, t: Tensor) -> Tensor:
        """Return the numbers that the network embeds: t itself, or t on the range 0 … 1000 of embeddings."""
        return t

    def time_at(self, share: Tensor) -> Tensor:
        """Return the times at these shares of the range, from 0 at `t_min` to 1 at `t_max`."""
        return self.t_min + (self.t_max - self.t_min) * share

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_t = α_t·x_0 + σ_t·ε (DDPM eq. 4), for a time per row, (B,), or one for all, ()."""
        alpha, sigma = self.alpha_sigma(t)
        return expand(alpha, x_0) * x_0 + expand(sigma, x_0) * noise

    def target(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return the network's target for x_t: a·x_0 + b·ε."""
        return _sum(self._coefficients(*self.alpha_sigma(t)), x_0, noise)

    def read(self, output: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """Solve x_t = α·x̂_0 + σ·ε̂ and o = a·x̂_0 + b·ε̂ for x̂_0 and ε̂, o an output of C or 2C channels."""
        predicted, fraction = split_output(output, x_t.shape[1])
        alpha, sigma = self.alpha_sigma(t)
        a, b = self._coefficients(alpha, sigma)
        determinant = expand(alpha * b - sigma * a, x_t)
        x0 = _sum((b, -sigma), x_t, predicted) / determinant
        eps = _sum((-a, alpha), x_t, predicted) / determinant
        return Prediction(x0, eps, fraction)

    def check(self) -> None:
        """Raise UsageError if σ/α falls, or if `read` cannot solve for x̂_0 and ε̂ at every time, with σ > 0.

        Between the checked times αb − σa has no zero, since it has one sign at all of them.
        """
        grid = self.probe_grid()
        a, b = self._coefficients(grid.alpha, grid.sigma)
        determinant = grid.alpha * b - grid.sigma * a
        solvable = (determinant * determinant[0].sign() >= MIN_DETERMINANT) & determinant.isfinite()
        wrong = (solvable & (grid.sigma > 0)).logical_not().nonzero().flatten().tolist()
        if wrong:
            config, alpha, sigma = self.config, float(grid.alpha[wrong[0]]), float(grid.sigma[wrong[0]])
            raise UsageError(
                f"process.schedule {config.schedule} and process.prediction {config.prediction} leave x_0 or "
                f"ε undetermined at t = {grid.times[wrong[0]]:g}, where α = {alpha:g} and σ = {sigma:g}: "
                "use another prediction, such as velocity"
            )
        levels = grid.sigma / grid.alpha
        if falls := (levels[1:] < levels[:-1]).nonzero().flatten().tolist():
            place, at = function_place(type(self).alpha_sigma), falls[0]
            raise UsageError(
                f"{place}: σ/α of process.schedule {self.config.schedule} falls from {levels[at]:g} at "
                f"t = {grid.times[at]:g} to {levels[at + 1]:g} at the next time: it must grow with t"
            )

    def probe_grid(self) -> TimeGrid:
        """Return a grid over the whole range of time, for checks and figures: all timesteps, or evenly."""
        times: list[float] = torch.linspace(self.t_min, self.t_max, PROBES, dtype=torch.float64).tolist()
        return self.grid(times)

    def loss_weight(self, t: Tensor) -> Tensor:
        """Return the float64 weights (B,) of the prediction's squared errors; 1 for weighting none.

        A weight is of x̂_0's error, which is σ/(αb − σa) times the prediction's (Hang et al. 2023, 2303.09556,
        app. A): min(SNR, γ) is divided by SNR for ε, by SNR + 1 for the velocity.
        """
        alpha, sigma = self.alpha_sigma(t)
        weight = self.data_weight(t)
        if weight is None:
            return torch.ones_like(alpha)
        a, b = self._coefficients(alpha, sigma)
        determinant: Tensor = alpha * b - sigma * a
        return weight * (sigma / determinant).square()

    def data_weight(self, t: Tensor) -> Tensor | None:
        """Return the float64 weights (B,) of x̂_0's errors by `weighting`; None for none."""
        entry = LOSS_WEIGHTS[self.config.weighting]
        options = entry.parse(self.config.weighting_options)
        weight: Tensor | None = load_reference(entry.builder)(*self.alpha_sigma(t), self.sigma_data, options)
        return weight

    def _coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Return a and b of what the network predicts, a·x_0 + b·ε."""
        return self._predicted.combination(alpha, sigma, self.sigma_data)


def build_process(config: ProcessConfig) -> NoiseProcess:
    """Build the process of the section; UsageError as `NoiseProcess.check`."""
    process: NoiseProcess = load_reference(PROCESSES[config.schedule].builder)(config)
    process.check()
    return process


@dataclass(frozen=True)
class NetworkDenoiser:
    """A network within the process that it was trained for."""

    network: Network
    process: NoiseProcess

    def __call__(self, x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        """Run one forward pass; return the prediction in x's dtype."""
        times = self._times(x, t)
        return self.process.read(self.output(x, times, condition), x, times)

    def output(self, x: Tensor, t: Tensor | float, condition: Condition) -> Tensor:
        """Run one forward pass; return the network's output of C or 2C channels in x's dtype."""
        received, time = self.process.network_input(x, self._times(x, t))
        inputs = received, expand_times(time, x), condition.labels
        return self.network(*inputs, **condition.further).to(x.dtype)

    def _times(self, x: Tensor, t: Tensor | float) -> Tensor:
        times = time_tensor(t)
        is_near = times.ndim and float64_device(x.device) == x.device  # where the process has its tables
        return to_device(times, x.device) if is_near else times


def _sum(factors: tuple[Tensor | float, Tensor | float], first: Tensor, second: Tensor) -> Tensor:
    """Return the sum of two images, each times its factor: a number, or (B,) or () values."""
    of_first, of_second = (
        expand(factor, first) if isinstance(factor, Tensor) else factor for factor in factors
    )
    return of_first * first + of_second * second
