"""The grid of a sweep: its cells, their names, and what decides their images. It loads no torch."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusion.protocol.samplers import SAMPLERS, Noise
from diffusion.protocol.settings import TRAINED_EMA, SamplerConfig, SampleSettings, SweepConfig
from diffusion.system.section import canonical_json

AXES = (  # what a grid may vary, in this order
    "steps", "eta", "sampler", "noise", "spacing", "guidance", "guidance_interval", "ema",
)  # fmt: skip
MODEL_AXES = ("ema",)  # those of them that say which model a cell is of
DERIVED_FIELDS = ("evaluations",)  # in a card, what follows from the values on the axes
SAMPLING_VERSION = 5  # raise it when the same model and settings would no longer give the same images


@dataclass(frozen=True)
class Cell:
    """One point of the grid: its value on every axis that it varies on, None on the others.

    An interval stands there as `interval_text` writes it; of one everywhere there is nothing to say.
    `ema` is which model it is of, the power-function average of that width; all else is how images come out.
    """

    steps: int
    eta: float
    sampler: str | None = None
    noise: Noise | None = None
    spacing: str | None = None
    guidance: float | None = None
    guidance_interval: str | None = None
    ema: float | None = None

    @property
    def axes(self) -> dict[str, Any]:
        """The cell's values by axis, in the order of AXES."""
        values = {axis: getattr(self, axis) for axis in AXES}
        return {axis: value for axis, value in values.items() if value is not None}

    @property
    def name(self) -> str:
        """The cell's folder in samples/ and its name everywhere, such as steps50-eta0.5-noise_large."""
        name = "-".join(
            f"{axis}_{value}" if isinstance(value, str) else f"{axis}{format_value(value)}"
            for axis, value in self.axes.items()
        )
        return name.replace(":", "_")  # which some file systems and copying programs take otherwise


def grid(sample: SamplerConfig, sweep: SweepConfig) -> list[Cell]:
    """Every cell once, in the order of the section, the last axis fastest.

    No axis varies where it means nothing: a deterministic sampler has η = 0 and one cell where ddim has one
    for each η, and so has a single step, which adds no noise; `noise` varies at η > 0 alone, and
    `guidance_interval` at w > 0. The model as it was trained has no value of `ema`.
    """
    listed = {axis: getattr(sweep, axis) or (None,) for axis in AXES}
    intervals = listed["guidance_interval"]
    listed["guidance_interval"] = tuple(ends and interval_text(ends) for ends in intervals)
    cells = (_meaningful(values, sample) for values in itertools.product(*listed.values()))
    return list(dict.fromkeys(cells))


def _meaningful(values: tuple[Any, ...], usual: SamplerConfig) -> Cell:
    axes = dict(zip(AXES, values, strict=True))
    if axes["steps"] == 1 or not SAMPLERS[axes["sampler"] or usual.sampler].stochastic:
        axes["eta"] = 0.0
    if axes["eta"] == 0:
        axes["noise"] = None
    if (usual.guidance if axes["guidance"] is None else axes["guidance"]) == 0:
        axes["guidance_interval"] = None
    if axes["ema"] == TRAINED_EMA:
        axes["ema"] = None
    return Cell(**axes)


def cell_settings(sample: SamplerConfig, cell: Cell) -> SampleSettings:
    """What decides the cell's images beside the model.

    The section's `sampler_options` are those of its own sampler; another has its defaults.
    """
    shared = sample.model_dump(include=set(SamplerConfig.model_fields))
    if cell.sampler not in (None, sample.sampler):
        del shared["sampler_options"]
    own = {axis: value for axis, value in cell.axes.items() if axis not in MODEL_AXES}
    return SampleSettings(**{**shared, **own})


def settings_card(settings: SampleSettings) -> dict[str, Any]:
    """The settings as they stand in a card, what follows from them, and the version of the code they mean.

    SampleSettings reads its own fields back from it. An explicit list of timesteps is written as `0,10,99`
    and takes the place of the spacing; a classifier's scale, an interval of guidance and a sampler's options
    stand there when there are any, the options as JSON. `evaluations` is what an image costs, where the
    settings alone say it.
    """
    values = settings.model_dump(mode="json", exclude={"timesteps", "sampler_options", "guidance_interval"})
    if settings.guidance_interval is not None:
        values["guidance_interval"] = interval_text(settings.guidance_interval)
    if options := SAMPLERS[settings.sampler].checked_options(settings.sampler_options):
        values["sampler_options"] = canonical_json(options)
    if not settings.classifier_scale:
        del values["classifier_scale"]
    if settings.timesteps is not None:
        del values["spacing"]
        values["timesteps"] = ",".join(map(str, settings.timesteps))
    if settings.evaluations is not None:
        values["evaluations"] = settings.evaluations
    return {**values, "sampling_version": SAMPLING_VERSION}


def interval_text(ends: tuple[float, float]) -> str:
    """An interval of noise levels as a card and a command line have it, such as 0.2:5."""
    return ":".join(map(format_value, ends))


def format_option(value: Any) -> str:
    """A value of an axis as a command line has it; that of no interval is none."""
    if value is None:
        return "none"
    return interval_text(value) if isinstance(value, tuple) else str(value)


def settings_axes(settings: SampleSettings) -> dict[str, Any]:
    """All that the settings say on the axes of a grid, as `Cell.axes` of a cell that varies on each.

    They say nothing of the model's.
    """
    values = {axis: getattr(settings, axis) for axis in AXES if axis not in MODEL_AXES}
    if settings.guidance_interval is not None:
        values["guidance_interval"] = interval_text(settings.guidance_interval)
    return {axis: value for axis, value in values.items() if value is not None}


def format_value(value: str | float) -> str:
    """An axis's value in a name or a table: as short as reads back to itself, so that no two look alike."""
    if isinstance(value, str):
        return value
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


# What follows reads a cell's entry in the scores document as well as `Cell.axes`.

_SPOKEN = {
    "eta": "η = {}",
    "sampler": "{}",
    "noise": "noise {}",
    "spacing": "spacing {}",
    "guidance": "w = {}",
    "guidance_interval": "σ/α in {}",
    "ema": "σ_rel = {}",
}


def describe_line(entry: Mapping[str, Any]) -> str:
    """All but the steps, for people, such as `η = 0, dpm-solver++`: what the cells of a plot's line share."""
    return ", ".join(
        form.format(format_value(entry[axis])) for axis, form in _SPOKEN.items() if axis in entry
    )


def describe_cell(entry: Mapping[str, Any]) -> str:
    """A cell in words, such as `50 steps, η = 0.5`."""
    steps = entry["steps"]
    return f"{steps} step{'s' * (steps != 1)}, {describe_line(entry)}"


def cell_order(entry: Mapping[str, Any]) -> tuple[tuple[bool, Any], ...]:
    """A key that sorts cells by their axes, by steps first; cells without an axis stand before the others."""
    return tuple((axis in entry, entry.get(axis)) for axis in AXES)
