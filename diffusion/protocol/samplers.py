"""The registry of samplers, by their names in params.yaml, cards and commands, and the options of each.

A new one is an entry here and a module with a builder, SampleSettings → Sampler. The options of spacings are
here too. This module loads no torch.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from diffusion.system.limits import MAX_NOISE_LEVEL, MAX_PATH, MAX_STEPS
from diffusion.system.registry import BuilderEntry, Registry, WithOptions
from diffusion.system.section import NotBool, Section

IN_CODE_DIGEST = False  # diffusion/code_digest.py

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


class ConsistencySamplerOptions(Section):
    """Options of multistep consistency sampling."""

    sigma_mid: NoiseLevel | None = Field(
        default=0.821,
        description="The noise level σ/α of the second of 2 steps; null: that of the spacing.",
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


class LearnedOptions(Section):
    """The noise levels of learned times: in a `file` of `diffctl grid`, or listed.

    Settings of images have the `levels` of their steps instead of the file.
    """

    file: Annotated[str, Field(min_length=1, max_length=MAX_PATH)] | None = Field(
        default=None, description="The file with the times, which `diffctl grid` makes."
    )
    levels: Annotated[tuple[NoiseLevel, ...], Field(min_length=1, max_length=MAX_STEPS)] | None = Field(
        default=None, description="The noise level σ/α of each step, falling."
    )
    model_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="The model that the times were learned for."
    )

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        if self.file is not None and self.levels is not None:
            raise ValueError("file and levels exclude each other: leave one out")
        if any(one <= after for one, after in itertools.pairwise(self.levels or ())):
            raise ValueError("levels must fall strictly, from noise to image")
        return self


Noise = Literal["small", "large", "learned"]


@dataclass(frozen=True)
class SamplerEntry(BuilderEntry, WithOptions):
    """`builder` makes a Sampler of the settings; `options` is the class of `sampler_options`.

    Each is a "module:name", loaded when it is needed, the options without torch. A sampler that `uses_eta`
    adds `noise` where eta is not 0, and applies the mean shift of a prediction at noisy steps. Another one
    adds noise where its `noise_option` of `sampler_options` is not 0. One `for_consistency` takes x̂_0 for the
    end of the flow, and adds noise at every step but the last. `nfe` returns the number of network calls in S
    steps.
    """

    builder: str
    uses_eta: bool = False
    nfe: Callable[[int], int] = lambda steps: steps
    options: str = "diffusion.system.section:NoOptions"
    source: str = ""
    noise_option: str | None = None
    for_consistency: bool = False


_edm_sampler = partial(
    SamplerEntry, noise_option="s_churn", source="Karras et al. 2022 (2206.00364), alg. 1 and 2"
)
_sde_sampler = partial(
    SamplerEntry,
    options="diffusion.protocol.samplers:SDEOptions",
    noise_option="eta",
    source="github.com/crowsonkb/k-diffusion, sampling.py",
)

SAMPLERS: Registry[SamplerEntry] = Registry(
    "sample.sampler",
    "`SampleSettings` → `Sampler` (`diffusion/sample/sampler.py`)",
    {
        "ddim": SamplerEntry(
            "diffusion.sample.ddim:build", uses_eta=True, source="Song et al. 2020 (2010.02502), eq. 12"
        ),
        "euler": _edm_sampler(
            "diffusion.sample.euler:build_euler", options="diffusion.protocol.samplers:ChurnOptions"
        ),
        "euler-ancestral": _sde_sampler("diffusion.sample.euler:build_ancestral"),
        "heun": _edm_sampler(
            "diffusion.sample.euler:build_heun",
            nfe=lambda steps: 2 * steps - 1,
            options="diffusion.protocol.samplers:HeunOptions",
        ),
        "dpm-solver++": SamplerEntry(
            "diffusion.sample.dpm_solver:build", source="Lu et al. 2022 (2211.01095), alg. 2"
        ),
        "dpm-solver++-2m-sde": _sde_sampler("diffusion.sample.dpm_solver:build_2m_sde"),
        "dpm-solver++-3m-sde": _sde_sampler("diffusion.sample.dpm_solver:build_3m_sde"),
        "unipc": SamplerEntry(
            "diffusion.sample.unipc:build",
            options="diffusion.protocol.samplers:UniPCOptions",
            source="Zhao et al. 2023 (2302.04867), alg. 1 and 2",
        ),
        "ipndm": SamplerEntry(
            "diffusion.sample.ipndm:build",
            options="diffusion.protocol.samplers:IPNDMOptions",
            source="Zhang & Chen 2022 (2204.13902)",
        ),
        "consistency": SamplerEntry(
            "diffusion.sample.consistency:build",
            options="diffusion.protocol.samplers:ConsistencySamplerOptions",
            source="Song et al. 2023 (2303.01469), alg. 1",
            for_consistency=True,
        ),
    },
)


def without_eta(where: str, name: str) -> str:
    """Return that a sampler does not use eta, and the option of its own noise, if it has one."""
    own = SAMPLERS[name].noise_option
    hint = f" (its noise is set by sampler_options.{own})" if own else ""
    return f"{where} {name} does not use eta{hint}"
