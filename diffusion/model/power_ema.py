"""Power-function averages of a training's weights (Karras et al. 2024, 2312.02696, sec. 3 and app. C).

Such an average after t steps counts the weights after step τ by p(τ) = (γ+1)·τ^γ / t^(γ+1), so that it
forgets the random start by itself and always looks back over the same share of a training. Its width σ_rel is
the standard deviation of p in units of t, which is equivalent to γ and easier to choose. No torch here.
"""

import math
from typing import Annotated

from pydantic import Field

from diffusion.system.section import NotBool

MIN_SIGMA_REL, MAX_SIGMA_REL = 0.01, 0.28  # γ of 97.5 and 0.23; at 0, the flat average, it is 1/√12
SigmaRel = Annotated[float, Field(ge=MIN_SIGMA_REL, le=MAX_SIGMA_REL), NotBool]
HALVINGS = 200  # more than a double has digits


def sigma_rel_of(gamma: float) -> float:
    """σ_rel = √(γ+1) / ((γ+2)·√(γ+3)), which falls with γ ≥ 0."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(width: float) -> float:
    """Return the γ ≥ 0 of a width, by halving; for MIN_SIGMA_REL to MAX_SIGMA_REL."""
    low, high = 0.0, 1 / MIN_SIGMA_REL
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sigma_rel_of(middle) > width else (low, middle)
    return (low + high) / 2


def newest_weight(width: float, steps: int) -> float:
    """1 − β, what the weights after t = `steps` ≥ 1 steps count in the average then; β = (1 − 1/t)^(γ+1).

    The first ones are the average. Weights after step i then count the integral of p from i − 1 to i.
    """
    return 1.0 if steps == 1 else -math.expm1((gamma_of(width) + 1) * math.log1p(-1 / steps))
