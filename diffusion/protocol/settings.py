"""The declaration of every sampling option.

A new option is a field here with an `Option` in its annotation; its effect is in a sampler or in guidance.
This module loads no torch.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from diffusion.protocol.base_model import Base, BaseConfig, base_text
from diffusion.protocol.guidance_rules import (
    GUIDANCE_RULES,
    implied_rule,
    normalize_guide,
    rules_without_guide,
)
from diffusion.protocol.learned_grid import with_learned_levels
from diffusion.protocol.options import (
    EntryOptions,
    Interval,
    NoEffect,
    Option,
    Timesteps,
    declared_options,
    interval_text,
    split_list,
)
from diffusion.protocol.samplers import SAMPLERS, Noise, without_eta
from diffusion.protocol.spacing import LEARNED, SPACINGS
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_COND_NOISE, MAX_ETA, MAX_GUIDANCE, MAX_NAME, MAX_PATH
from diffusion.system.registry import WithOptions, check_name, is_entry, load_reference
from diffusion.system.section import NotBool, Section, Seed, ShortText, SigmaRel, Steps, explain, validate

IN_CODE_DIGEST = False  # diffusion/code_digest.py

# The options whose entries have options of their own, in the field `<name>_options`.
REGISTRIES_WITH_OPTIONS: dict[str, Mapping[str, WithOptions]] = {
    "sampler": SAMPLERS,
    "spacing": SPACINGS,
    "guidance_rule": GUIDANCE_RULES,
}

SamplerName = Annotated[str, AfterValidator(partial(check_name, registry=SAMPLERS))]
# Of a cascade as a whole, or with further networks.
BASE_LACKS = {"base", "seed", "classes", "cond_noise", "guide", "guidance_rule", "classifier"}

SpacingName = Annotated[str, AfterValidator(partial(check_name, registry=SPACINGS))]
RuleName = Annotated[str, AfterValidator(partial(check_name, registry=GUIDANCE_RULES))]
Guide = Annotated[str, Field(max_length=MAX_PATH), AfterValidator(normalize_guide)]
FileName = Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=r"^[^\x00]+$")]
GuidanceScale = Annotated[float, Field(ge=0, le=MAX_GUIDANCE), NotBool]


def _samplers_without_eta() -> list[str]:
    return [name for name, entry in SAMPLERS.items() if not entry.uses_eta]


def _equal_to(*values: Any) -> Callable[[], tuple[Any, ...]]:
    return lambda: values


_UNGUIDED = NoEffect("guidance", "without {option}", _equal_to(0))
_WITHOUT_ETA = NoEffect("sampler", "with {option} {value}, which does not use eta", _samplers_without_eta)


class CommonSettings(Section):
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
            no_effect=(_WITHOUT_ETA, NoEffect("eta", "at {option} 0, where no noise is added", _equal_to(0))),
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
            "The weight w of guidance: diffusers' guidance_scale - 1; 0 is none.",
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
            no_effect=(NoEffect("classifier", "without {option}", _equal_to(None)),),
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
            "The model whose images a model with model.low_res enlarges; by default it enlarges real images.",
            metavar="FILE|JSON",
            axis=None,
            write=base_text,
            http=False,
            registered=False,
        ),
    ] = None
    clip: Annotated[
        bool, Option("Clip x̂_0 to [−1, 1] at every step.", axis=None, always_in_card=True, cli=False)
    ] = True
    classes: Annotated[
        Literal["balanced", "data"],
        Option(
            "The mix of classes.", axis=None, always_in_card=True, cli=False, http=False, registered=False
        ),
    ] = "balanced"

    @field_validator("base")
    @classmethod
    def _check_base(cls, value: BaseConfig | None) -> BaseConfig | None:
        if value is not None:
            if taken := sorted(BASE_LACKS & value.sampling.keys()):
                raise ValueError(f"sampling.{taken[0]}: a base has no such option: leave it out")
            options = value.sampling.get("spacing_options")
            if isinstance(options, dict) and options.get("file"):
                raise ValueError(
                    "sampling.spacing_options.file: a base takes no file of learned times: list the levels"
                )
            try:
                SampleSettings(**value.sampling)
            except ValidationError as error:
                raise ValueError(explain(error, "sampling", SampleSettings)) from None
        return value

    @model_validator(mode="after")
    def _check_entry_options(self) -> Self:
        for field, entries in REGISTRIES_WITH_OPTIONS.items():
            name = self.entry(field)
            entry = entries[name]
            try:
                entry.checked_options(getattr(self, f"{field}_options"))
            except ValidationError as error:
                kind = load_reference(entry.options)
                found = explain(error, f"{field}_options of {name}", kind)
                names = ", ".join(kind.model_fields)
                raise ValueError(found + f"; options are {names}" * ("unknown key" not in found)) from None
        return self

    @property
    def rule(self) -> str:
        """The rule of guidance, a name of GUIDANCE_RULES."""
        return self.guidance_rule or implied_rule(self.guide)

    @property
    def base_settings(self) -> "SampleSettings | None":
        """The settings of the base model; None without one."""
        shared: dict[str, Any] = {"seed": self.seed, "classes": self.classes}
        return None if self.base is None else SampleSettings(**self.base.sampling, **shared)

    def entry(self, field: str) -> str:
        """Return the name of the entry of a field of REGISTRIES_WITH_OPTIONS."""
        return self.rule if field == "guidance_rule" else str(getattr(self, field))


class SampleSettings(CommonSettings):
    """All that determines an image, except the model and the image's index.

    `timesteps` is an explicit list in place of `steps` and `spacing`. Guidance options without effect are
    dropped, and so is an implied rule, so that equal images have equal settings.
    """

    steps: Annotated[
        Steps,
        Option(
            "Sampling steps; at most T with a spacing of timesteps.", axis="required", always_in_card=True
        ),
    ] = 50
    eta: Annotated[
        Annotated[float, Field(ge=0, le=MAX_ETA), NotBool],
        Option(
            "0: deterministic DDIM; 1: DDPM.",
            label="η",
            phrase="η = {}",
            axis="required",
            always_in_card=True,
            no_effect=(
                NoEffect("steps", "with a single step, which adds no noise", _equal_to(1)),
                _WITHOUT_ETA,
            ),
        ),
    ] = 0.0
    timesteps: Annotated[
        Timesteps | None,
        Option(
            "The timesteps to visit, instead of steps and spacing.",
            metavar="T0,T1,…",
            axis=None,
            write=lambda times: ",".join(map(str, times)),
            http=False,
            registered=False,
        ),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _count_timesteps_and_drop_implied_rule(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        listed = split_list(values.get("timesteps"))
        if isinstance(listed, list | tuple) and listed:
            values = {"steps": len(listed), **values}
        rule = values.get("guidance_rule")
        if values.get("guidance") and is_entry(rule, GUIDANCE_RULES) and not GUIDANCE_RULES[rule].clips:
            values = {**values, "clip": False}
        if rule in rules_without_guide():
            values = {**values, "guide": None}
        return {**values, "guidance_rule": None} if rule == implied_rule(values.get("guide")) else values

    @field_validator(
        "guidance_rule", "guidance_rule_options", "guide", "guidance_interval", "classifier_scale"
    )
    @classmethod
    def _drop_without_effect(cls, value: Any, info: ValidationInfo) -> Any:
        needed = "classifier" if info.field_name == "classifier_scale" else "guidance"
        field = cls.model_fields[str(info.field_name)]
        return value if info.data.get(needed) else field.get_default(call_default_factory=True)

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.timesteps is not None and len(self.timesteps) != self.steps:
            raise ValueError(f"steps {self.steps} is not the length of timesteps, {len(self.timesteps)}")
        if self.eta and not SAMPLERS[self.sampler].uses_eta:
            raise ValueError(f"{without_eta('sampler', self.sampler)}: it must be 0 (got {self.eta})")
        if self.eta and self.steps == 1:
            raise ValueError(f"a single step adds no noise: eta must be 0 (got {self.eta})")
        if self.spacing == LEARNED and self.timesteps is None:
            self._check_levels()
        if self.needs_guide and self.guide is None:
            raise ValueError(f"guidance_rule {self.rule} needs a guide: ema:SIGMA_REL[@STEP] or a file")
        return self

    def _check_levels(self) -> None:
        levels = self.spacing_options.get("levels")
        if levels is None:
            raise ValueError(
                "spacing learned needs the times of a model: spacing_options.file in params.yaml or "
                "--spacing-option file=FILE, of `diffctl grid`"
            )
        if len(levels) != self.steps:
            raise ValueError(f"steps {self.steps} is not the number of learned times, {len(levels)}")

    @property
    def needs_guide(self) -> bool:
        """Whether a second model guides."""
        return bool(self.guidance) and GUIDANCE_RULES[self.rule].needs_guide

    @property
    def has_classifier(self) -> bool:
        """Whether a classifier guides."""
        return self.classifier is not None and self.classifier_scale > 0

    @property
    def is_guided(self) -> bool:
        """Whether anything guides the model."""
        return bool(self.guidance) or self.has_classifier

    @property
    def guided_nfe(self) -> int:
        """NFE of a guided call of the denoiser."""
        return GUIDANCE_RULES[self.rule].nfe if self.guidance else 1

    @property
    def nfe(self) -> int | None:
        """NFE of an image: one per call of the sampler, more under guidance; a classifier does not count.

        None with an interval of guidance: then it depends on the process (`sampling_steps.count_nfe`).
        """
        if self.guidance_interval is not None:
            return None
        return SAMPLERS[self.sampler].nfe(self.steps) * self.guided_nfe

    def guided_everywhere(self) -> Self:
        """Return these settings without an interval of guidance."""
        return self.model_copy(update={"guidance_interval": None})


class ModelOptions(Section):
    """The options of a cell that select its model's weights."""

    ema: Annotated[
        SigmaRel | Literal["decay"] | None,
        Option(
            "EMA profiles by their σ_rel; decay: the EMA of the model file.",
            label="σ_rel",
            phrase="σ_rel = {}",
            stored=SigmaRel,
            unset="decay",  # the model file of a training, averaged by `train.ema_decay`
            cli=False,
            http=False,
            registered=False,
        ),
    ] = None


SAMPLING_OPTIONS = declared_options(SampleSettings)  # the sampler's, by name
ALL_OPTIONS: Mapping[str, Option] = {**SAMPLING_OPTIONS, **declared_options(ModelOptions)}
AXES = tuple(name for name, one in ALL_OPTIONS.items() if one.axis)  # what a sweep may vary, in this order
MODEL_AXES = tuple(ModelOptions.model_fields)


def refuse_idle(given: Mapping[str, Any], settings: SampleSettings) -> None:
    """Raise UsageError for a nullable option that was given and has no effect next to the settings."""
    for name, value in given.items():
        option = ALL_OPTIONS.get(name)
        if option is None or option.default is not None or value is None:
            continue
        if why := option.idle_reason(lambda other: getattr(settings, other)):
            raise UsageError(f"{name} has no effect {why}: change that, or leave it out")


def parse_settings(
    optional: dict[str, Any], usual: dict[str, Any] | None = None, **values: Any
) -> SampleSettings:
    """Return a command's settings, with `usual` values for None; UsageError if they do not fit."""
    given = {name: value for name, value in optional.items() if value is not None}
    chosen = with_learned_levels({**(usual or {}), **given, **values}, SAMPLING_OPTIONS["steps"].default)
    return validate(SampleSettings, chosen, "these options do not fit")
