"""What a network predicts: each a combination a·x_0 + b·ε of the image and the noise in x_t = α·x_0 + σ·ε.

So x̂_0 and ε̂ follow from x_t and the output by solving two linear equations, whichever it is. No torch here:
a registry of names that a configuration may give.
"""

from collections.abc import Callable
from typing import Any

from diffusion.system.registry import Registry

Combination = Callable[[Any, Any], tuple[Any, Any]]
"""(α, σ) of a time → (a, b), float64 tensors or numbers."""


def _eps(alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """ε (DDPM, 2006.11239)."""
    return 0.0, 1.0


def _x0(alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """x_0 (DDPM sec. 3.2; Salimans & Ho 2022)."""
    return 1.0, 0.0


def _velocity(alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """α·ε − σ·x_0: where x_t moves as its angle grows (Salimans & Ho 2022, 2202.00512, app. D)."""
    return -sigma, alpha


def _flow(alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """ε − x_0: where x_t moves on the straight line between them (Lipman et al. 2023, 2210.02747)."""
    return -1.0, 1.0


PREDICTIONS: Registry[Combination] = Registry(
    "process.prediction",
    "(α, σ) → (a, b) of what is predicted, a·x_0 + b·ε",
    {"eps": _eps, "x0": _x0, "velocity": _velocity, "flow": _flow},
)
