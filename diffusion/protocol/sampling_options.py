"""The declaration of every sampling option, except `steps`, `eta` and `timesteps` of `SampleSettings`.

A new option is a field here with an `Option` in its annotation; its effect is in a sampler or in guidance.
This module loads no torch.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from diffusion.protocol.base_model import Base, base_text
from diffusion.protocol.guidance_rules import GUIDANCE_RULES, normalize_guide, rules_without_guide
from diffusion.protocol.options import EntryOptions, Interval, NoEffect, Option, interval_text
from diffusion.protocol.samplers import SAMPLERS, Noise
from diffusion.protocol.spacing import SPACINGS
from diffusion.system.limits import MAX_COND_NOISE, MAX_GUIDANCE, MAX_NAME, MAX_PATH
from diffusion.system.registry import WithOptions, check_name
from diffusion.system.section import NotBool, Section, Seed, ShortText

IN_CODE_DIGEST = False  # diffusion/code_digest.py

# Options with a registry: its entries have options of their own, in the field `<name>_options`.
REGISTRIES_WITH_OPTIONS: dict[str, Mapping[str, WithOptions]] = {
    "sampler": SAMPLERS,
    "spacing": SPACINGS,
    "guidance_rule": GUIDANCE_RULES,
}

SamplerName = Annotated[str, AfterValidator(partial(check_name, registry=SAMPLERS))]
SpacingName = Annotated[str, AfterValidator(partial(check_name, registry=SPACINGS))]
RuleName = Annotated[str, AfterValidator(partial(check_name, registry=GUIDANCE_RULES))]
Guide = Annotated[str, Field(max_length=MAX_PATH), AfterValidator(normalize_guide)]
FileName = Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=r"^[^\x00]+$")]
GuidanceScale = Annotated[float, Field(ge=0, le=MAX_GUIDANCE), NotBool]


def _samplers_without_eta() -> list[str]:
    return [name for name, entry in SAMPLERS.items() if not entry.uses_eta]


def equal_to(*values: Any) -> Callable[[], tuple[Any, ...]]:
    """Return the `values` of a NoEffect: these."""
    return lambda: values


_UNGUIDED = NoEffect("guidance", "without {option}", equal_to(0))
WITHOUT_ETA = NoEffect("sampler", "with {option} {value}, which does not use eta", _samplers_without_eta)


class SamplingOptions(Section):
    """The sampler's options, except steps and eta; the help of each states what it is.

    `guidance` is w of D + w·(D − D_worse). `guidance_rule` selects D_worse: the network without the condition
    (classifier-free, CFG eq. 6), or a `guide`, a worse model of the same data (autoguidance, 2406.02507).
    Guidance applies where low < σ/α ≤ high of `guidance_interval` (2404.07724). `classifier_scale` is
    s of ADM's alg. 1 and 2. `sampler` ddim is the reverse step of DDPM, iDDPM and DDIM. All noise follows
    from `seed` and the image's index.
    """

    sampler: Annotated[
        SamplerName,
        Option("How a step is made.", phrase="{}", choices=SAMPLERS, always_in_card=True, registered=False),
    ] = "ddim"
    sampler_options: Annotated[
        EntryOptions, Option("Options of this sampler alone.", axis=None, registered=False)
    ] = Field(default_factory=dict)
    seed: Annotated[Seed, Option("Another seed gives other images.", axis=None, always_in_card=True)] = 0
    noise: Annotated[
        Noise,
        Option(
            "The variance that η scales.",
            choices=get_args(Noise),
            always_in_card=True,
            no_effect=(WITHOUT_ETA, NoEffect("eta", "at {option} 0, where no noise is added", equal_to(0))),
        ),
    ] = "small"
    spacing: Annotated[
        SpacingName,
        Option(
            "The times of the steps.",
            choices=SPACINGS,
            always_in_card=True,
            no_effect=(NoEffect("timesteps", "next to {option}"),),
        ),
    ] = "uniform"
    spacing_options: Annotated[
        EntryOptions, Option("Options of this spacing alone.", axis=None, registered=False)
    ] = Field(default_factory=dict)
    guidance: Annotated[
        GuidanceScale,
        Option(
            "The weight w of guidance: diffusers' guidance_scale - 1; 0: no guidance.",
            label="w",
            phrase="w = {}",
            always_in_card=True,
        ),
    ] = 0.0
    guidance_rule: Annotated[
        RuleName | None,
        Option(
            "What guidance extrapolates from: the model without the class, or a guide; by default the guide, "
            "if there is one.",
            phrase="{}",
            choices=GUIDANCE_RULES,
            no_effect=(_UNGUIDED,),
        ),
    ] = None
    guidance_rule_options: Annotated[
        EntryOptions, Option("Options of this guidance rule alone.", axis=None, registered=False)
    ] = Field(default_factory=dict)
    guide: Annotated[
        Guide | None,
        Option(
            "A worse model of the same data that guides: ema:SIGMA_REL[@STEP] of the same training, "
            "or a model file.",
            metavar="ema:SIGMA_REL[@STEP]|FILE",
            phrase="guided by {}",
            write=str,
            no_effect=(
                _UNGUIDED,
                NoEffect("guidance_rule", "with {option} {value}, which takes no guide", rules_without_guide),
            ),
        ),
    ] = None
    guidance_interval: Annotated[
        Interval | None,
        Option(
            "Guide only where LOW < σ/α ≤ HIGH; without it everywhere.",
            metavar="LOW:HIGH",
            label="σ/α",
            phrase="σ/α in {}",
            write=interval_text,
            stored=ShortText,
            no_effect=(_UNGUIDED,),
        ),
    ] = None
    classifier: Annotated[
        FileName | None,
        Option(
            "Guide by a classifier that `diffctl stage classifier` trained.",
            metavar="FILE",
            axis=None,
            write=str,
            http=False,
            registered=False,
        ),
    ] = None
    classifier_scale: Annotated[
        GuidanceScale,
        Option(
            "How strongly a classifier guides (ADM's s).",
            label="s",
            phrase="s = {}",
            http=False,
            registered=False,
            no_effect=(NoEffect("classifier", "without {option}", equal_to(None)),),
        ),
    ] = 1.0
    cond_noise: Annotated[
        Annotated[float, Field(ge=0, le=MAX_COND_NOISE), NotBool],
        Option(
            "The noise on low-resolution images, in units of [-1, 1], of a model with model.low_res.",
            phrase="noise {} on low resolutions",
        ),
    ] = 0.0
    base: Annotated[
        Base | None,
        Option(
            "The base model of a cascade; without one, a model with model.low_res enlarges real images.",
            metavar="FILE|JSON",
            axis=None,
            write=base_text,
            http=False,
            registered=False,
        ),
    ] = None
    clip: Annotated[bool, Option("Clip x̂_0 to [−1, 1] at every step.", axis=None, always_in_card=True)] = True
    classes: Annotated[
        Literal["balanced", "data"],
        Option(
            "The mix of classes: as many of each, or drawn as often as in the data.",
            axis=None,
            choices=("balanced", "data"),
            always_in_card=True,
            http=False,
            registered=False,
        ),
    ] = "balanced"
