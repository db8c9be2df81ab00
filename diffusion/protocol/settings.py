"""The settings of sampling: which options fit together, and what follows from them. It loads no torch."""

from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from diffusion.process.process_registry import PROCESSES
from diffusion.protocol.base_model import BaseConfig
from diffusion.protocol.guidance_rules import GUIDANCE_RULES, implied_rule, rules_without_guide
from diffusion.protocol.options import NoEffect, Option, Timesteps, split_list
from diffusion.protocol.samplers import SAMPLERS, without_eta
from diffusion.protocol.sampling_options import (
    REGISTRIES_WITH_OPTIONS,
    WITHOUT_ETA,
    SamplingOptions,
    equal_to,
)
from diffusion.protocol.spacing import LEARNED
from diffusion.system.limits import MAX_ETA
from diffusion.system.registry import is_entry, load_reference
from diffusion.system.section import NotBool, Steps, explain

IN_CODE_DIGEST = False  # diffusion/code_digest.py

# Of a cascade as a whole, or with further networks.
BASE_LACKS = {"base", "seed", "classes", "cond_noise", "guide", "guidance_rule", "classifier"}


class CommonSettings(SamplingOptions):
    """The options that all cells of a sweep share: those of a sampler, a spacing and a base must fit it."""

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
                known = SampleSettings(**value.sampling).model_dump(mode="json")
            except ValidationError as error:
                raise ValueError(explain(error, "sampling", SampleSettings)) from None
            value = value.model_copy(update={"sampling": {name: known[name] for name in value.sampling}})
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
                NoEffect("steps", "with a single step, which adds no noise", equal_to(1)),
                WITHOUT_ETA,
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


def completed(settings: SampleSettings, schedule: str) -> SampleSettings:
    """Return the settings with the default spacing of a process, unless they name one or list times."""
    if "spacing" in settings.model_fields_set or settings.timesteps is not None:
        return settings
    return settings.model_copy(update={"spacing": PROCESSES[schedule].spacing})


def base_settings(settings: CommonSettings, schedule: str) -> SampleSettings | None:
    """Return the settings of a cascade's base, a model of this process; None without a base."""
    if settings.base is None:
        return None
    shared: dict[str, Any] = {"seed": settings.seed, "classes": settings.classes}
    return completed(SampleSettings(**settings.base.sampling, **shared), schedule)
