"""How images come out of a model: the sampler's settings, those of one image, and the section `sweep`."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from diffusion.process_config import Noise
from diffusion.section import Distinct, PositiveInt, Section, validated

Spacing = Literal["uniform", "quadratic", "trailing"]
Sampler = Literal["ddim", "dpm-solver++"]

Value = TypeVar("Value")
Axis = Annotated[tuple[Value, ...], Field(min_length=1), Distinct]


def _whole_numbers(values: Any) -> Any:
    """`0,10,99` as a command line or a flat card writes a list."""
    return [part.strip() for part in values.split(",")] if isinstance(values, str) else values


class SamplerConfig(Section):
    """How images come out of a model, but for steps and eta. `guidance` is w of CFG eq. 6: 0 means none.

    `sampler` ddim is the reverse step of DDPM, iDDPM and DDIM; dpm-solver++ is its multistep solver of order
    2 (2211.01095), deterministic, to which `noise` means nothing. `classes` is the mix of asked classes:
    every class equally often, or as in the training data.
    """

    sampler: Sampler = "ddim"
    seed: Annotated[int, Field(ge=0)] = 0
    noise: Noise = "small"
    spacing: Spacing = "uniform"
    guidance: Annotated[float, Field(ge=0)] = 0.0
    clip: bool = True
    classes: Literal["balanced", "data"] = "balanced"


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
    classifier_scale: Annotated[float, Field(ge=0)] = 0.0
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
        if self.sampler == "dpm-solver++" and self.eta:
            raise ValueError(f"sampler dpm-solver++ is deterministic: eta must be 0 (got {self.eta})")
        return self


class SweepConfig(Section):
    """The grid: every step count with every eta, and with every value of the further axes that are listed.

    An axis that is not listed has the value of the section `sample` in every cell.
    """

    steps: Axis[PositiveInt]
    eta: Axis[Annotated[float, Field(ge=0)]]
    sampler: Axis[Sampler] | None = None
    noise: Axis[Noise] | None = None
    spacing: Axis[Spacing] | None = None
    guidance: Axis[Annotated[float, Field(ge=0)]] | None = None


def parse_settings(optional: dict[str, Any], **values: Any) -> SampleSettings:
    """SampleSettings of a command's options, those in `optional` only if not None; UsageError where unfit."""
    given = {name: value for name, value in optional.items() if value is not None}
    return validated(SampleSettings, {**given, **values}, "these options do not fit")
