"""How images come out of a model: the sampler's settings, those of one image, and the section `sweep`."""

import json
from functools import partial
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from diffusion.protocol.samplers import SAMPLERS, Noise
from diffusion.protocol.spacing import SPACINGS
from diffusion.system.registry import known
from diffusion.system.section import Distinct, PositiveInt, Section, validated

SamplerName = Annotated[str, AfterValidator(partial(known, registry=SAMPLERS))]
SpacingName = Annotated[str, AfterValidator(partial(known, registry=SPACINGS))]

Guidance = Annotated[float, Field(ge=0, le=1000)]  # the papers' are below 20: more is a slip of the hand

Value = TypeVar("Value")
Axis = Annotated[tuple[Value, ...], Field(min_length=1), Distinct]


def _whole_numbers(values: Any) -> Any:
    """`0,10,99` as a command line or a flat card writes a list."""
    return [part.strip() for part in values.split(",")] if isinstance(values, str) else values


def _mapping(values: Any) -> Any:
    """A mapping as a flat card writes it, in JSON."""
    return json.loads(values) if isinstance(values, str) else values


class SamplerConfig(Section):
    """How images come out of a model, but for steps and eta. `guidance` is w of CFG eq. 6: 0 means none.

    `sampler` is a name of SAMPLERS: ddim is the reverse step of DDPM, iDDPM and DDIM; dpm-solver++ is its
    multistep solver of order 2 (2211.01095), deterministic, to which `noise` means nothing.
    `sampler_options` are what that sampler alone knows. `classes` is the mix of asked classes: every class
    equally often, or as in the training data.
    """

    sampler: SamplerName = "ddim"
    sampler_options: Annotated[dict[str, Any], BeforeValidator(_mapping)] = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=0)] = 0
    noise: Noise = "small"
    spacing: SpacingName = "uniform"
    guidance: Guidance = 0.0
    clip: bool = True
    classes: Literal["balanced", "data"] = "balanced"

    @model_validator(mode="after")
    def _options_are_the_samplers(self) -> Self:
        try:
            SAMPLERS[self.sampler].checked_options(self.sampler_options)
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
            raise ValueError(f"sampler_options of {self.sampler}: {', '.join(wrong)}") from None
        return self


class CellConfig(SamplerConfig):
    """What all cells of a sweep share: the sampler's settings, and how many images a cell has."""

    num_images: Annotated[int, Field(ge=2)]


class SampleSettings(SamplerConfig):
    """All that decides an image beside the model and its index.

    `timesteps` is an explicit list that takes the place of `steps` and `spacing`. `classifier_scale` is s of
    ADM's alg. 1 and 2: 0 means no classifier.
    """

    steps: PositiveInt = 50
    eta: Annotated[float, Field(ge=0)] = 0.0
    classifier_scale: Guidance = 0.0
    timesteps: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_whole_numbers)] | None = (
        None
    )

    @model_validator(mode="before")
    @classmethod
    def _count_timesteps(cls, values: Any) -> Any:
        listed = values.get("timesteps") if isinstance(values, dict) else None
        return {"steps": len(_whole_numbers(listed)), **values} if listed else values

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.timesteps is not None and len(self.timesteps) != self.steps:
            raise ValueError(f"steps {self.steps} is not the length of timesteps, {len(self.timesteps)}")
        if self.eta and not SAMPLERS[self.sampler].stochastic:
            raise ValueError(f"sampler {self.sampler} is deterministic: eta must be 0 (got {self.eta})")
        return self

    @property
    def evaluations(self) -> int:
        """How often the network sees an image: at each question of the sampler, twice under guidance.

        What a classifier sees does not count.
        """
        return SAMPLERS[self.sampler].evaluations(self.steps) * (2 if self.guidance else 1)


class SweepConfig(Section):
    """The grid: every step count with every eta, and with every value of the further axes that are listed.

    An axis that is not listed has the value of the section `sample` in every cell.
    """

    steps: Axis[PositiveInt]
    eta: Axis[Annotated[float, Field(ge=0)]]
    sampler: Axis[SamplerName] | None = None
    noise: Axis[Noise] | None = None
    spacing: Axis[SpacingName] | None = None
    guidance: Axis[Guidance] | None = None


def parse_settings(optional: dict[str, Any], **values: Any) -> SampleSettings:
    """SampleSettings of a command's options, those in `optional` only if not None; UsageError where unfit."""
    given = {name: value for name, value in optional.items() if value is not None}
    return validated(SampleSettings, {**given, **values}, "these options do not fit")
