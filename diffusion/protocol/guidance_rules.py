"""The registry of guidance rules, by their names in params.yaml, cards and commands, and the text of a guide.

A rule is an entry here and a module with a subclass of `diffusion.sample.guidance.Guidance`. The options of
rules are here too. This module loads no torch.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from diffusion.system.limits import MAX_SIGMA_REL, MAX_STEPS, MIN_SIGMA_REL
from diffusion.system.registry import BuilderEntry, Registry, WithOptions, load_reference
from diffusion.system.section import NotBool, Section

IN_CODE_DIGEST = False  # diffusion/code_digest.py

MAX_RADIUS = 1e6

EMA_GUIDE = re.compile(r"ema:(\d*\.?\d+)(?:@0*([1-9]\d{0,8}))?")


class ProjectionOptions(Section):
    """Options of APG: parallel 1, momentum 0, no radius and no clipping is classifier-free guidance."""

    parallel: Annotated[float, Field(ge=0, le=1), NotBool] = Field(
        default=0.0, description="η, the share of the difference's part along the prediction."
    )
    momentum: Annotated[float, Field(gt=-1, lt=1), NotBool] = Field(
        default=-0.5, description="β, the factor of the differences before; below 0 the change counts more."
    )
    radius: Annotated[float, Field(gt=0, le=MAX_RADIUS), NotBool] | None = Field(
        default=None, description="r, the largest norm of the difference; by default any."
    )


class ZeroOptions(Section):
    """Options of CFG-Zero*."""

    zero_calls: Annotated[int, Field(ge=0, le=MAX_STEPS), NotBool] = Field(
        default=1, description="The number of first calls with velocity 0."
    )


@dataclass(frozen=True)
class GuidanceRule(BuilderEntry, WithOptions):
    """`builder` is the class of the rule, `options` that of `guidance_rule_options`; `source` is its paper.

    Each is a "module:name", loaded when it is needed, the options without torch. A rule that `needs_guide`
    compares the model with a second one, one that `needs_null` with itself without the condition, for which
    it must have been trained with dropped labels. `nfe` is the NFE of a guided call. Without `clips` x̂_0 is
    never clipped. The ε of one that `keeps_eps` is not that of x̂_0: ddim does not recompute it from a clipped
    x̂_0, and methods that recompute ε refuse the rule.
    """

    builder: str
    source: str = ""
    needs_guide: bool = False
    needs_null: bool = False
    nfe: int = 2
    clips: bool = True
    keeps_eps: bool = False
    options: str = "diffusion.system.section:NoOptions"

    def load(self) -> Any:
        """Return the class."""
        return load_reference(self.builder)


GUIDANCE_RULES: Registry[GuidanceRule] = Registry(
    "sample.guidance_rule",
    "(`SampleSettings`, `NoiseProcess`) → `Guidance` (`diffusion/sample/guidance.py`)",
    {
        "classifier-free": GuidanceRule(
            "diffusion.sample.guidance:ClassifierFree", "CFG, 2207.12598, eq. 6", needs_null=True
        ),
        "autoguidance": GuidanceRule(
            "diffusion.sample.guidance:Autoguidance", "Karras et al. 2024, 2406.02507", needs_guide=True
        ),
        "apg": GuidanceRule(
            "diffusion.sample.apg:AdaptiveProjected",
            "Sadat et al. 2025, 2410.02416, alg. 1",
            needs_null=True,
            options="diffusion.protocol.guidance_rules:ProjectionOptions",
        ),
        "cfg-zero": GuidanceRule(
            "diffusion.sample.cfg_zero:CFGZero",
            "CFG-Zero*, Fan et al. 2025, 2503.18886",
            needs_null=True,
            clips=False,
            options="diffusion.protocol.guidance_rules:ZeroOptions",
        ),
        "cfg++": GuidanceRule(
            "diffusion.sample.cfg_plus_plus:CFGPlusPlus",
            "Chung et al. 2025, 2406.08070, alg. 2",
            needs_null=True,
            keeps_eps=True,
        ),
    },
)


def implied_rule(guide: str | None) -> str:
    """Return the rule where none is named: autoguidance with a guide, else classifier-free guidance."""
    return "classifier-free" if guide is None else "autoguidance"


def rules_without_guide() -> list[str]:
    """Return the names of the rules that take no guide."""
    return [name for name, rule in GUIDANCE_RULES.items() if not rule.needs_guide]


class EmaGuide(NamedTuple):
    """An EMA profile of the model's training: its σ_rel, and the step of an earlier one."""

    sigma_rel: float
    step: int | None = None


def ema_guide(text: str) -> EmaGuide | None:
    """Parse `ema:SIGMA_REL[@STEP]`; None for the path of a model file. ValueError for a bad one."""
    if not text.startswith("ema:"):
        return None
    found = EMA_GUIDE.fullmatch(text)
    if found is None or not MIN_SIGMA_REL <= float(found[1]) <= MAX_SIGMA_REL:
        want = f"ema:SIGMA_REL[@STEP] with σ_rel from {MIN_SIGMA_REL} to {MAX_SIGMA_REL}"
        raise ValueError(f"a guide is {want}, such as ema:0.1@300 (got {text!r})")
    return EmaGuide(float(found[1]), None if found[2] is None else int(found[2]))


def normalize_guide(text: str) -> str:
    """Return a guide's text in the form that cards and cell names have."""
    profile = ema_guide(text)
    if profile is None:
        if not text or "\0" in text:
            raise ValueError("a guide is ema:SIGMA_REL[@STEP] or the path of a model file")
        return text
    return f"ema:{profile.sigma_rel:g}" + ("" if profile.step is None else f"@{profile.step}")
