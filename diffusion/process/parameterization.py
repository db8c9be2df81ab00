"""What a network predicts: each a combination a·x_0 + b·ε of the image and the noise in x_t = α·x_0 + σ·ε.

So x̂_0 and ε̂ follow from x_t and the output by solving two linear equations, whichever it is. No torch here:
a registry of names that a configuration may give.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusion.system.registry import Registry


@dataclass(frozen=True)
class Parameterization:
    """`combination`: (α, σ, σ_data) of a time → (a, b) of what a network predicts, tensors or numbers.

    `input_scale` gives the factor c_in of its input x_t, by default 1. σ_data is the standard deviation of
    pixels.
    """

    combination: Callable[[Any, Any, float], tuple[Any, Any]]
    source: str
    input_scale: Callable[[Any, Any, float], Any] | None = None
    uses_sigma_data: bool = False

    @property
    def module(self) -> str:
        """The module that computes it."""
        return self.combination.__module__


def _eps(alpha: Any, sigma: Any, sigma_data: float) -> tuple[Any, Any]:
    """ε."""
    return 0.0, 1.0


def _x0(alpha: Any, sigma: Any, sigma_data: float) -> tuple[Any, Any]:
    """x_0."""
    return 1.0, 0.0


def _velocity(alpha: Any, sigma: Any, sigma_data: float) -> tuple[Any, Any]:
    """α·ε − σ·x_0: where x_t moves as its angle grows."""
    return -sigma, alpha


def _flow(alpha: Any, sigma: Any, sigma_data: float) -> tuple[Any, Any]:
    """ε − x_0: where x_t moves on the straight line between them."""
    return -1.0, 1.0


def _edm(alpha: Any, sigma: Any, sigma_data: float) -> tuple[Any, Any]:
    """F of D(x) = c_skip·x + c_out·F(c_in·x), of variance 1 at every time: (σ/σ_data·x_0 − ασ_data·ε)·c_in.

    c_skip = ασ_data²·c_in², c_out = σσ_data·c_in, c_in = 1/√(α²σ_data² + σ²).
    """
    c_in = _unit_variance(alpha, sigma, sigma_data)
    return sigma / sigma_data * c_in, -alpha * sigma_data * c_in


def _unit_variance(alpha: Any, sigma: Any, sigma_data: float) -> Any:
    """Return c_in, with which x_t has variance 1."""
    return (alpha**2 * sigma_data**2 + sigma**2) ** -0.5


PREDICTIONS: Registry[Parameterization] = Registry(
    "process.prediction",
    "(α, σ, σ_data) → (a, b) of what is predicted, a·x_0 + b·ε",
    {
        "eps": Parameterization(_eps, "DDPM, 2006.11239"),
        "x0": Parameterization(_x0, "DDPM, 2006.11239, sec. 3.2"),
        "velocity": Parameterization(_velocity, "Salimans & Ho 2022, 2202.00512, app. D"),
        "flow": Parameterization(_flow, "Lipman et al. 2023, 2210.02747"),
        "edm": Parameterization(_edm, "EDM, 2206.00364, table 1, with α", _unit_variance, True),
    },
)
