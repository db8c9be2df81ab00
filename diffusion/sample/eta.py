"""How much noise a walk may add: the limit of eta on a grid, and which noise a model has."""

import math
from decimal import ROUND_FLOOR, Decimal

from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.samplers import Noise
from diffusion.system.errors import UsageError


def max_eta(grid: TimeGrid) -> float:
    """The largest η for which σ'² − η²β̃ ≥ 0 at every step, so σ²/β (DDIM eq. 12); at least 1."""
    if len(grid) == 1:
        return math.inf
    return float((grid.sigma[1:].square() / grid.betas[1:]).min().sqrt())


def format_max_eta(grid: TimeGrid) -> str:
    """`max_eta` for a refusal: to 4 decimals, rounded down, so that it is not refused itself."""
    largest = max_eta(grid)
    return str(largest if math.isinf(largest) else Decimal(largest).quantize(Decimal("1e-4"), ROUND_FLOOR))


def check_eta(grid: TimeGrid, eta: float) -> None:
    """UsageError when σ² would exceed 1 − ᾱ_prev somewhere along the grid."""
    if not 0 <= eta <= max_eta(grid):
        raise UsageError(f"eta {eta} does not fit {len(grid)} steps: give 0 to {format_max_eta(grid)}")


def check_noise(noise: Noise, learned: bool) -> None:
    """UsageError when learned noise is asked of a network without a learned variance."""
    if noise == "learned" and not learned:
        raise UsageError("noise learned needs a model with a learned variance; use small or large")
