"""The registry of guidance rules, by their names in params.yaml, cards and commands, and the text of a guide.

A rule is an entry here and a module with a builder, (denoiser, weight, guide or None) → denoiser. This module
loads no torch.
"""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from diffusion.system.limits import MAX_SIGMA_REL, MIN_SIGMA_REL
from diffusion.system.registry import BuilderEntry, Registry, load_reference

IN_CODE_DIGEST = False  # diffusion/code_digest.py

EMA_GUIDE = re.compile(r"ema:(\d*\.?\d+)(?:@0*([1-9]\d{0,8}))?")


@dataclass(frozen=True)
class GuidanceRule(BuilderEntry):
    """`builder` is the "module:name" of the rule, loaded when it is needed; `source` is its paper.

    The weight is a number or one for each row; a row of weight 0 is that of `denoiser`, and costs no more. A
    rule that `needs_guide` compares the model with a second one, one that `needs_null` with itself without
    the condition, for which it must have been trained with dropped labels. `nfe` is the NFE of a guided call.
    """

    builder: str
    source: str = ""
    needs_guide: bool = False
    needs_null: bool = False
    nfe: int = 2

    def load(self) -> Any:
        """Return the builder."""
        return load_reference(self.builder)


GUIDANCE_RULES: Registry[GuidanceRule] = Registry(
    "sample.guidance_rule",
    "(denoiser, weight, guide or None) → denoiser (`diffusion/process/denoiser.py`)",
    {
        "classifier-free": GuidanceRule(
            "diffusion.sample.guidance:classifier_free", "CFG, 2207.12598, eq. 6", needs_null=True
        ),
        "autoguidance": GuidanceRule(
            "diffusion.sample.guidance:autoguidance", "Karras et al. 2024, 2406.02507", needs_guide=True
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
