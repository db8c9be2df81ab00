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
    """Options of iPNDM."""

    order: Annotated[int, Field(ge=1, le=MAX_ADAMS_ORDER), NotBool] = Field(
        default=4, description="The order of the Adams–Bashforth method; 1 is Euler's method."
    )


class UniPCOptions(Section):
    """Options of UniPC."""

    order: Annotated[int, Field(ge=2, le=3), NotBool] = Field(
        default=3, description="The order of the predictor; the corrector raises it by one."
    )
    variant: Literal["bh1", "bh2"] = Field(default="bh2", description="B(h) is −h in bh1, e^(−h) − 1 in bh2.")


class SDEOptions(Section):
    """Options of a sampler that solves the SDE."""

    eta: Annotated[float, Field(ge=0, le=1), NotBool] = Field(
        default=1.0, description="The share of the SDE's noise that a step adds, from 0, none, to 1, all."
    )
    s_noise: NoiseScale = Field(default=1.0, description="The factor of the added noise.")


class ChurnOptions(Section):
    """Noise that a step adds before it moves (EDM alg. 2): none with `s_churn` 0.

    Where s_tmin ≤ σ/α ≤ s_tmax the noise level grows by the factor 1 + min(s_churn/S, √2 − 1), with noise
    times `s_noise`. EDM has 40, 0.05, 50 and 1.003 on ImageNet-64.
    """

    s_churn: Annotated[float, Field(ge=0, le=MAX_CHURN), NotBool] = Field(
        default=0.0,
        description="Before it moves, a step raises the noise level by the factor 1 + s_churn/S, at most √2.",
    )
    s_tmin: Annotated[float, Field(ge=0, le=MAX_NOISE_LEVEL), NotBool] = Field(
        default=0.0, description="The lowest noise level σ/α that is raised."
    )
    s_tmax: NoiseLevel = Field(
        default=MAX_NOISE_LEVEL, description="The highest noise level σ/α that is raised."
    )
    s_noise: NoiseScale = Field(default=1.0, description="The factor of the added noise.")


class HeunOptions(ChurnOptions):
    """Options of Heun's method."""

    path: Literal["noise-level", "straight"] = Field(
        default="noise-level",
        description="Along which a step averages its slopes: in the noise level σ/α, or straight, as flows.",
    )


class NoiseRange(Section):
    """The noise levels σ/α of the last and the first step; by default those of the process."""

    sigma_min: NoiseLevel | None = Field(
        default=None, description="The noise level σ/α of the last step; by default that of the process."
    )
    sigma_max: NoiseLevel | None = Field(
        default=None, description="The noise level σ/α of the first step; by default that of the process."
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        low, high = self.sigma_min, self.sigma_max
        if low is not None and high is not None and low >= high:
            raise ValueError(f"sigma_min must be below sigma_max (got {low:g} and {high:g})")
        return self


class KarrasOptions(NoiseRange):
    """Options of EDM's spacing (eq. 5)."""

    rho: Annotated[float, Field(ge=1, le=MAX_RHO), NotBool] = Field(
        default=7.0, description="ρ: a larger one has more steps at small noise."
    )
