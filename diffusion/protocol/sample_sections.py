"""The sections `sample` and `sweep` of params.yaml, which follow from the declared options."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union, get_args

from pydantic import Field, model_validator

from diffusion.protocol.option_tables import ALL_OPTIONS, AXES
from diffusion.protocol.options import Option, fields_section
from diffusion.protocol.settings import CommonSettings
from diffusion.system.limits import MAX_COUNT
from diffusion.system.section import BatchSize, NotBool, Section, ShortText, Unique

IN_CODE_DIGEST = False  # diffusion/code_digest.py

MAX_CELLS = 1000  # each is a folder, a set of images, their scores and a run


class SampleConfig(CommonSettings):
    """What all cells of a sweep share: the sampler's options, and where images are sampled.

    A cell has `num_images` images. `batch_size` is the number of images at a time. `runner` local samples in
    this process; ray does on all devices of this machine, or on the Ray cluster at `address`, with `num_gpus`
    per batch (None: one if there are any). Except for rounding these three change no image.
    """

    num_images: Annotated[int, Field(ge=2, le=MAX_COUNT), NotBool]
    batch_size: BatchSize = 250
    runner: Literal["local", "ray"] = "local"
    address: ShortText | None = None
    num_gpus: Annotated[float, Field(ge=0, le=64), NotBool] | None = None


def _axis_field(option: Option) -> tuple[Any, Any]:
    """Return the type and default of an option's list of values in the section `sweep`."""
    required = option.axis == "required"
    value = option.annotation
    if option.default is None and option.unset is not None:  # it means null
        value = Union[*(one for one in get_args(option.declared.annotation) if one is not type(None))]
    listed = Annotated[tuple[value, ...], Field(min_length=1, max_length=100), Unique]  # type: ignore[valid-type]
    field = Field(default=... if required else None, description=option.help)
    return listed if required else listed | None, field


if TYPE_CHECKING:
    _AxisLists = Section
else:
    _AxisLists = fields_section(
        "_AxisLists", Section, {name: _axis_field(ALL_OPTIONS[name]) for name in AXES}
    )


class SweepConfig(_AxisLists):
    """The grid: every number of `steps` with every `eta`, and with every value of the further axes.

    These are the sampler's options that may vary, and `ema`. An axis that is not listed has the value of the
    section `sample` in every cell. A null on the axis of intervals is everywhere. `ema` lists the σ_rel of
    EMA profiles, which are reconstructed from the snapshots of `train.ema_profiles`. `decay` is the model
    file's own EMA, and the only one of a grid without `ema`.
    """

    if TYPE_CHECKING:  # the axes that code names
        steps: tuple[int, ...]
        eta: tuple[float, ...]
        sampler: tuple[str, ...] | None = None
        spacing: tuple[str, ...] | None = None
        ema: tuple[float | Literal["decay"], ...] | None = None

    @property
    def sigma_rels(self) -> tuple[float, ...]:
        """The σ_rel of the EMA profiles that the grid has cells of."""
        return tuple(value for value in self.ema or () if not isinstance(value, str))

    @model_validator(mode="after")
    def _limit_cells(self) -> Self:
        cells = math.prod(len(values) for _, values in self if values)
        if cells > MAX_CELLS:
            raise ValueError(f"the axes have {cells:,} cells together: list at most {MAX_CELLS:,}")
        return self


def check_axes(sample: CommonSettings, sweep: SweepConfig, names: Iterable[str] = AXES) -> None:
    """Raise ValueError if one of these axes is given in both sections, or has no effect in any cell.

    Only a nullable option may not be in both: a null on its axis would mean the section's value.
    """
    for name in names:
        is_twice = getattr(sample, name, None) is not None and getattr(sweep, name) is not None
        if ALL_OPTIONS[name].default is None and is_twice:
            raise ValueError(f"sweep.{name} is for every cell: leave sample.{name} out")
    for where, name, field, why in idle_axes(dict(sample), dict(sweep)):
        if name in names:
            raise ValueError(f"{where}.{name} has no effect {why}: change {field} or leave it out")


def idle_axes(
    sample: Mapping[str, Any], sweep: Mapping[str, Any]
) -> Iterator[tuple[Literal["sample", "sweep"], str, str, str]]:
    """Yield each given axis that has no effect in any cell: its section, name, the field it depends on, why.

    An axis is given if the sweep lists a value, or if it is nullable and has one in the section `sample`.
    """
    for name in AXES:
        option = ALL_OPTIONS[name]
        if option.axis == "required":
            continue
        if any(value is not None for value in sweep.get(name) or ()):
            where: Literal["sample", "sweep"] = "sweep"
        elif option.default is None and sample.get(name) is not None:
            where = "sample"
        else:
            continue
        for condition in option.no_effect:
            field, values = axis_values(condition.option, sample, sweep)
            if all(map(condition.holds, values)):
                yield where, name, field, condition.why.format(option=condition.option, value=values[0])
                break


def axis_values(
    name: str, sample: Mapping[str, Any], sweep: Mapping[str, Any]
) -> tuple[str, tuple[Any, ...]]:
    """Return the field of params.yaml that decides an option in the grid, and its values."""
    if listed := sweep.get(name):
        return f"sweep.{name}", tuple(listed)
    return f"sample.{name}", (sample.get(name, ALL_OPTIONS[name].default),)
