"""Noise processes over real time, with a network's targets and loss weights.

x_t = α_t·x_0 + σ_t·ε with ε ~ N(0, I), for t from 0 to T−1; x_T is taken for N(0, I). A further process is a
subclass with its own α and σ, and an entry of PROCESSES.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.process.denoiser import Prediction, expand, split_output
from diffusion.process.parameterization import PREDICTIONS
from diffusion.process.process_registry import ProcessConfig
from diffusion.process.time_grid import TimeGrid
from diffusion.system.devices import float64_device, to_device
from diffusion.system.errors import UsageError

CPU = torch.device("cpu")
SNR_LIMIT = 5.0  # γ of min-SNR weighting, the paper's choice
MIN_DETERMINANT = 1e-12  # errors divided by less have squares beyond float32


class NoiseProcess(ABC):
    """The process that a `process` section describes."""

    def __init__(self, config: ProcessConfig) -> None:
        self.config = config
        self._combination = PREDICTIONS[config.prediction]
        self._full: dict[torch.device, TimeGrid] = {}

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ of times in [0, T−1], integers or real: float64, shaped as `t`, where that is exact.

        That is `float64_device` of its device.

        α falls and σ grows with t; σ is 0 nowhere.
        """

    def noise_level(self, t: Tensor) -> Tensor:
        """σ/α of times, as `alpha_sigma`: the σ of images that are not scaled down (Karras et al. 2022).

        For a variance-preserving process √((1−ᾱ)/ᾱ); ∞ where nothing of the image is left.
        """
        alpha, sigma = self.alpha_sigma(t)
        return sigma / alpha

    @property
    def timesteps(self) -> int:
        """T, how many whole times there are."""
        return self.config.timesteps

    def grid(self, times: Sequence[int] | Sequence[float]) -> TimeGrid:
        """Return the tables along increasing times."""
        chosen = torch.tensor(times, dtype=torch.float64 if isinstance(times[0], float) else torch.int64)
        return TimeGrid(chosen, *self.alpha_sigma(chosen))

    def full_grid(self, device: torch.device = CPU) -> TimeGrid:
        """Return the grid of all times 0 … T−1, of training and the bound; it is made once per device.

        If the device has no float64, it is on the CPU.
        """
        device = float64_device(device)
        if device not in self._full:
            self._full[device] = self.grid(range(self.timesteps)).to(device)
        return self._full[device]

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = α_t·x_0 + σ_t·ε (DDPM eq. 4), for a time a row, (B,), or one for all, ()."""
        alpha, sigma = self.alpha_sigma(t)
        return expand(alpha, x_0) * x_0 + expand(sigma, x_0) * noise

    def target(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return the network's target for x_t: a·x_0 + b·ε."""
        return _sum(self._combination(*self.alpha_sigma(t)), x_0, noise)

    def read(self, output: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """Solve x_t = α·x̂_0 + σ·ε̂ and o = a·x̂_0 + b·ε̂ for x̂_0 and ε̂, o an output of C or 2C channels."""
        predicted, fraction = split_output(output, x_t.shape[1])
        alpha, sigma = self.alpha_sigma(t)
        a, b = self._combination(alpha, sigma)
        determinant = expand(alpha * b - sigma * a, x_t)
        x0 = _sum((b, -sigma), x_t, predicted) / determinant
        eps = _sum((-a, alpha), x_t, predicted) / determinant
        return Prediction(x0, eps, fraction)

    def check_solvable(self) -> None:
        """Raise UsageError unless `read` can solve for x̂_0 and ε̂ at every time, with σ > 0.

        Between whole times αb − σa has no zero, since it has one sign at all of them.
        """
        grid = self.full_grid()
        a, b = self._combination(grid.alpha, grid.sigma)
        determinant = grid.alpha * b - grid.sigma * a
        solvable = (determinant * determinant[0].sign() >= MIN_DETERMINANT) & determinant.isfinite()
        wrong = (solvable & (grid.sigma > 0)).logical_not().nonzero().flatten().tolist()
        if wrong:
            config, alpha, sigma = self.config, float(grid.alpha[wrong[0]]), float(grid.sigma[wrong[0]])
            raise UsageError(
                f"process.schedule {config.schedule} and process.prediction {config.prediction} leave x_0 or "
                f"ε undetermined at t = {wrong[0]}, where α = {alpha:g} and σ = {sigma:g}: "
                "use another prediction, such as velocity"
            )

    def loss_weight(self, t: Tensor) -> Tensor:
        """(B,) float64 weights of the squared errors of what the network predicts: 1, or min-SNR-5.

        min(SNR, 5) in terms of x̂_0's error (Hang et al. 2023, 2303.09556, eq. 6 and app. A), which is σ/(αb −
        σa) times the prediction's: divided by SNR for ε, by SNR + 1 for the velocity.
        """
        alpha, sigma = self.alpha_sigma(t)
        if self.config.weighting == "none":
            return torch.ones_like(alpha)
        a, b = self._combination(alpha, sigma)
        determinant: Tensor = alpha * b - sigma * a
        return (alpha / sigma).square().clamp(max=SNR_LIMIT) * (sigma / determinant).square()


class TabulatedProcess(NoiseProcess):
    """A variance-preserving process with an exact table of ᾱ at whole times.

    Between them λ = log α/σ is a straight line in t.
    """

    def __init__(self, config: ProcessConfig, alphas_cumprod: Tensor) -> None:
        super().__init__(config)
        alpha, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
        self._tables = {CPU: torch.stack([alpha, sigma, (alpha / sigma).log()])}

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the table's values at whole times; real ones outside [0, T−1] count as the nearer end."""
        t = t.to(float64_device(t.device))
        if t.device not in self._tables:
            self._tables[t.device] = to_device(self._tables[CPU], t.device)
        alpha, sigma, log_snr = self._tables[t.device]
        if not t.is_floating_point():
            return alpha[t], sigma[t]
        t = t.double().clamp(0, self.timesteps - 1)
        before = t.floor().long()
        after = (before + 1).clamp(max=self.timesteps - 1)
        between = 2 * torch.lerp(log_snr[before], log_snr[after], t - before)
        whole = t == before
        return (
            torch.where(whole, alpha[before], between.sigmoid().sqrt()),
            torch.where(whole, sigma[before], (-between).sigmoid().sqrt()),
        )


def _sum(factors: tuple[Tensor | float, Tensor | float], first: Tensor, second: Tensor) -> Tensor:
    """Return the sum of two images, each times its factor: a number, or (B,) or () values."""
    of_first, of_second = (
        expand(factor, first) if isinstance(factor, Tensor) else factor for factor in factors
    )
    return of_first * first + of_second * second
