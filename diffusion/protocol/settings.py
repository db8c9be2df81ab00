"""How images come out of a model: the sampler's settings, those of one image, and the section `sweep`."""

import math
from functools import partial
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import from_json

from diffusion.model.power_average import LEAST_WIDTH, MOST_WIDTH, Width
from diffusion.protocol.interval import Interval
from diffusion.protocol.samplers import SAMPLERS, Noise
from diffusion.protocol.spacing import SPACINGS
from diffusion.system.limits import MAX_COUNT, MAX_ETA, MAX_GUIDANCE, MAX_STEPS
from diffusion.system.references import check_name, load_reference
from diffusion.system.section import NotBool, Section, Seed, Steps, Unique, explain, validate

SamplerName = Annotated[str, AfterValidator(partial(check_name, registry=SAMPLERS))]
SpacingName = Annotated[str, AfterValidator(partial(check_name, registry=SPACINGS))]

GuidanceScale = Annotated[float, Field(ge=0, le=MAX_GUIDANCE), NotBool]
Eta = Annotated[float, Field(ge=0, le=MAX_ETA), NotBool]
Time = Annotated[int, Field(ge=0, lt=MAX_STEPS), NotBool]
TRAINED_EMA = "decay"  # the model that a training gives, whose average is by `train.ema_decay`
MAX_CELLS = 1000  # each is a folder, a set of images, their scores and a run

Value = TypeVar("Value")
Axis = Annotated[tuple[Value, ...], Field(min_length=1, max_length=100), Unique]


def _average(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """A width or AS_TRAINED; one sentence for what is neither, where a union would say what each wants."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError(f"a width from {LEAST_WIDTH} to {MOST_WIDTH} is wanted, or {TRAINED_EMA}") from None


Average = Annotated[Width | Literal["decay"], WrapValidator(_average)]


def _whole_numbers(values: Any) -> Any:
    """`0,10,99` as a command line or a flat card writes a list."""
    return [part.strip() for part in values.split(",")] if isinstance(values, str) else values


Timesteps = Annotated[tuple[Time, ...], Field(max_length=MAX_STEPS), BeforeValidator(_whole_numbers)]


def _mapping(values: Any) -> Any:
    """A mapping as a flat card writes it, in JSON."""
    return from_json(values) if isinstance(values, str) else values


class SamplerConfig(Section):
    """How images come out of a model, but for steps and eta. `guidance` is w of CFG eq. 6: 0 means none.

    `guidance_interval` is [low, high] of noise levels σ/α: guidance applies where low < σ/α ≤ high
    (2404.07724, eq. 6), elsewhere the network is asked once, with the condition; None means everywhere.
    `sampler` is a name of SAMPLERS: ddim is the reverse step of DDPM, iDDPM and DDIM; dpm-solver++ is its
    multistep solver of order 2 (2211.01095), deterministic, to which `noise` means nothing.
    `sampler_options` are what that sampler alone knows. `spacing` chooses which of the T times the steps go
    through. `clip` keeps x̂_0 within [−1, 1] at every step. All noise comes from `seed` and the image's index.
    `classes` is the mix of asked classes: every class
    equally often, or as in the training data.
    """

    sampler: SamplerName = "ddim"
    sampler_options: Annotated[dict[str, Any], BeforeValidator(_mapping)] = Field(default_factory=dict)
    seed: Seed = 0
    noise: Noise = "small"
    spacing: SpacingName = "uniform"
    guidance: GuidanceScale = 0.0
    guidance_interval: Interval | None = None
    clip: bool = True
    classes: Literal["balanced", "data"] = "balanced"

    @model_validator(mode="after")
    def _options_are_the_samplers(self) -> Self:
        try:
            SAMPLERS[self.sampler].checked_options(self.sampler_options)
        except ValidationError as error:
            kind = load_reference(SAMPLERS[self.sampler].options)
            raise ValueError(explain(error, f"sampler_options of {self.sampler}", kind)) from None
        return self


class CellConfig(SamplerConfig):
    """What all cells of a sweep share: the sampler's settings. A cell has `num_images` images."""

    num_images: Annotated[int, Field(ge=2, le=MAX_COUNT), NotBool]


class SampleSettings(SamplerConfig):
    """All that decides an image beside the model and its index.

    `timesteps` is an explicit list that takes the place of `steps` and `spacing`. `classifier_scale` is s of
    ADM's alg. 1 and 2: 0 means no classifier. Without guidance a `guidance_interval` is left out.
    """

    steps: Steps = 50
    eta: Eta = 0.0
    classifier_scale: GuidanceScale = 0.0
    timesteps: Timesteps | None = None

    @model_validator(mode="before")
    @classmethod
    def _count_timesteps(cls, values: Any) -> Any:
        listed = _whole_numbers(values.get("timesteps")) if isinstance(values, dict) else None
        return {"steps": len(listed), **values} if isinstance(listed, list | tuple) and listed else values

    @field_validator("guidance_interval")
    @classmethod
    def _is_of_guidance(
        cls, interval: tuple[float, float] | None, before: ValidationInfo
    ) -> tuple[float, float] | None:
        return interval if before.data.get("guidance") else None

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.timesteps is not None and len(self.timesteps) != self.steps:
            raise ValueError(f"steps {self.steps} is not the length of timesteps, {len(self.timesteps)}")
        if self.eta and not SAMPLERS[self.sampler].stochastic:
            raise ValueError(f"sampler {self.sampler} is deterministic: eta must be 0 (got {self.eta})")
        if self.eta and self.steps == 1:
            raise ValueError(f"a single step adds no noise: eta must be 0 (got {self.eta})")
        return self

    @property
    def evaluations(self) -> int | None:
        """How often the network sees an image: at each question of the sampler, twice under guidance.

        What a classifier sees does not count. None in an interval, where the process decides how often:
        `diffusion.sample.nfe.count_nfe` knows.
        """
        if self.guidance_interval is not None:
            return None
        return SAMPLERS[self.sampler].evaluations(self.steps) * (2 if self.guidance else 1)


class SweepConfig(Section):
    """The grid: every number of `steps` with every `eta`, and with every value of the further axes.

    These are `sampler`, `noise`, `spacing`, `guidance`, `guidance_interval`, of which null is everywhere, and
    `ema`. An axis that is not listed has the value of the section `sample` in every cell. `ema` lists
    averages of the weights: widths σ_rel of power-function averages, made of what `train.averages` keeps, and
    `decay` for the model file's own, which is the only one where nothing is listed.
    """

    steps: Axis[Steps]
    eta: Axis[Eta]
    sampler: Axis[SamplerName] | None = None
    noise: Axis[Noise] | None = None
    spacing: Axis[SpacingName] | None = None
    guidance: Axis[GuidanceScale] | None = None
    guidance_interval: Axis[Interval | None] | None = None
    ema: Axis[Average] | None = None

    @property
    def widths(self) -> tuple[float, ...]:
        """The widths of power-function averages that the grid has cells of."""
        return tuple(value for value in self.ema or () if not isinstance(value, str))

    @model_validator(mode="after")
    def _cells_are_few(self) -> Self:
        cells = math.prod(len(values) for _, values in self if values)
        if cells > MAX_CELLS:
            raise ValueError(f"the axes have {cells:,} cells together: list at most {MAX_CELLS:,}")
        return self


def parse_settings(optional: dict[str, Any], **values: Any) -> SampleSettings:
    """SampleSettings of a command's options, those in `optional` only if not None; UsageError where unfit."""
    given = {name: value for name, value in optional.items() if value is not None}
    return validate(SampleSettings, {**given, **values}, "these options do not fit")
