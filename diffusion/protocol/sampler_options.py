"""The sections `sampler_options` and `spacing_options` by entry. This module loads no torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from diffusion.system.limits import MAX_NOISE_LEVEL
from diffusion.system.section import NotBool, Section

CHANGES_RESULTS = False  # diffusion/code_digest.py

MAX_ADAMS_ORDER = 4
MAX_CHURN = 1e6  # more than S·(√2 − 1) is cut to that (EDM alg. 2)
MAX_RHO = 100.0  # EDM tries 1 to 13

NoiseLevel = Annotated[float, Field(gt=0, le=MAX_NOISE_LEVEL), NotBool]
NoiseScale = Annotated[float, Field(ge=0, le=2), NotBool]


class IPNDMOptions(Section):
    """The Adams–Bashforth `order`, from 1, which is Euler's method."""

    order: Annotated[int, Field(ge=1, le=MAX_ADAMS_ORDER), NotBool] = 4


class UniPCOptions(Section):
    """The `order` of the predictor, and the `variant` of B(h): h, bh1, or e^h − 1, bh2."""

    order: Annotated[int, Field(ge=2, le=3), NotBool] = 3
    variant: Literal["bh1", "bh2"] = "bh2"


class SDEOptions(Section):
    """`eta` is the share of the SDE's noise that is added, from 0, none, to 1, all, times `s_noise`."""

    eta: Annotated[float, Field(ge=0, le=1), NotBool] = 1.0
    s_noise: NoiseScale = 1.0


class ChurnOptions(Section):
    """Noise that a step adds before it moves (EDM alg. 2): none with `s_churn` 0.

    Where s_tmin ≤ σ/α ≤ s_tmax the noise level grows by the factor 1 + min(s_churn/S, √2 − 1), with noise
    times `s_noise`. EDM has 40, 0.05, 50 and 1.003 on ImageNet-64.
    """

    s_churn: Annotated[float, Field(ge=0, le=MAX_CHURN), NotBool] = 0.0
    s_tmin: Annotated[float, Field(ge=0, le=MAX_NOISE_LEVEL), NotBool] = 0.0
    s_tmax: NoiseLevel = MAX_NOISE_LEVEL
    s_noise: NoiseScale = 1.0


class HeunOptions(ChurnOptions):
    """`path` is along which a step averages its slopes: in the noise level σ/α, or straight, as flows."""

    path: Literal["noise-level", "straight"] = "noise-level"


class NoiseRange(Section):
    """The noise levels σ/α of the last and the first step; by default those of the process."""

    sigma_min: NoiseLevel | None = None
    sigma_max: NoiseLevel | None = None

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        low, high = self.sigma_min, self.sigma_max
        if low is not None and high is not None and low >= high:
            raise ValueError(f"sigma_min must be below sigma_max (got {low:g} and {high:g})")
        return self


class KarrasOptions(NoiseRange):
    """`rho` is ρ: a larger one has more steps at small noise (EDM eq. 5)."""

    rho: Annotated[float, Field(ge=1, le=MAX_RHO), NotBool] = 7.0
