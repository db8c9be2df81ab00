"""Power-function EMA profiles of a training's weights (Karras et al. 2024, 2312.02696, sec. 3 and app. C).

After t steps the weights after step τ count p(τ) = (γ+1)·τ^γ / t^(γ+1). The random start is forgotten, and
the profile always covers the same share of the training. Its width σ_rel is the standard deviation of p in
units of t; it determines γ and is easier to choose. This module is torch-free.
"""

import math

from diffusion.system.limits import MIN_SIGMA_REL

HALVINGS = 200  # more than a double has digits


def sigma_rel_of(gamma: float) -> float:
    """Return σ_rel = √(γ+1) / ((γ+2)·√(γ+3)), which falls with γ ≥ 0."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(sigma_rel: float) -> float:
    """Return γ ≥ 0 of a σ_rel from MIN_SIGMA_REL to MAX_SIGMA_REL, by bisection."""
    low, high = 0.0, 1 / MIN_SIGMA_REL
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sigma_rel_of(middle) > sigma_rel else (low, middle)
    return (low + high) / 2


def newest_weight(sigma_rel: float, steps: int) -> float:
    """Return 1 − β, the newest weights' part of the EMA after t = `steps` ≥ 1; β = (1 − 1/t)^(γ+1).

    At t = 1 it is 1. The weights after step i then count the integral of p from i − 1 to i.
    """
    return 1.0 if steps == 1 else -math.expm1((gamma_of(sigma_rel) + 1) * math.log1p(-1 / steps))
