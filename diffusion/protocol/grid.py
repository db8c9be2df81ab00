"""The cells of a sweep: their names, their settings and their cards. This module loads no torch."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.images.store import ImageStore, open_store
from diffusion.images.store_meta import CellMeta
from diffusion.protocol.card import NETWORK_DIGESTS, differing_fields
from diffusion.protocol.learned_grid import with_learned_levels
from diffusion.protocol.option_tables import ALL_OPTIONS, AXES, MODEL_AXES, SAMPLING_OPTIONS
from diffusion.protocol.options import Option, fields_section, format_value
from diffusion.protocol.sample_sections import SampleConfig, SweepConfig
from diffusion.protocol.sampling_options import REGISTRIES_WITH_OPTIONS
from diffusion.protocol.settings import CommonSettings, SampleSettings
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.section import Section, ShortText, canonical_json, validate

# Of a card: they follow from the model, its base, the values on the axes, and the files that these name.
DERIVED_FIELDS = ("nfe", *NETWORK_DIGESTS[1:], "base_nfe", "weighted_nfe")
# Of a card: they follow from the section `sample` and the sampler, spacing and guidance rule on the axes.
OPTION_FIELDS = (*(f"{field}_options" for field in REGISTRIES_WITH_OPTIONS), "sampling_plugins", "clip")
RESERVED = re.compile(r"[^A-Za-z0-9._+-]")  # in names, by file systems, MLflow or copying programs
MAX_CELL_NAME = 200  # characters; file systems and MLflow allow 250 with what they add
# Raise it when the same model and settings would no longer give the same images. The next one is 7: 6 is that
# of `sampling_version` for models that enlarge images, APG, and CFG++ in an interval.
SAMPLING_VERSION = 5


def _axis_field(option: Option) -> tuple[Any, Any]:
    """Return the type and default of a cell's value on an axis."""
    stored = option.stored or (ShortText if option.choices else option.annotation)
    return (stored, ...) if option.axis == "required" else (stored | None, None)


if TYPE_CHECKING:
    _AxisValues = Section
else:
    _AxisValues = fields_section(
        "_AxisValues", Section, {name: _axis_field(ALL_OPTIONS[name]) for name in AXES}
    )


class Cell(_AxisValues):
    """A cell of the grid: its value on every axis that varies, None on the others.

    A value is in its text form where its option has one, such as an interval. `ema` selects the model, the
    power-function average of that width; the other axes are the sampler's.
    """

    if TYPE_CHECKING:  # the axes that code names
        steps: int
        eta: float
        sampler: str | None = None
        spacing: str | None = None
        guide: str | None = None
        ema: float | None = None

    @property
    def axes(self) -> dict[str, Any]:
        """The cell's values by axis, in the order of AXES."""
        return {axis: value for axis in AXES if (value := getattr(self, axis)) is not None}

    @property
    def name(self) -> str:
        """The cell's folder in samples/ and its name everywhere, such as steps50-eta0.5-noise_large."""
        name = "-".join(
            f"{axis}_{value}" if isinstance(value, str) else f"{axis}{format_value(value)}"
            for axis, value in self.axes.items()
        )
        return re.sub(RESERVED, "_", name)


def grid(sample: CommonSettings, sweep: SweepConfig) -> list[Cell]:
    """Return every cell once, in the order of the section, the last axis fastest.

    No axis varies where it has no effect. For example, a sampler without eta has η = 0 and one cell where
    ddim has one for each η. The model as it was trained has no value of `ema`.
    """
    listed = ([ALL_OPTIONS[axis].text(value) for value in getattr(sweep, axis) or (None,)] for axis in AXES)
    cells = list(dict.fromkeys(_effective_cell(values, sample) for values in itertools.product(*listed)))
    names = [cell.name for cell in cells]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two cells of the sweep are called {twice}: rename the file of a guide")
    if long := next((name for name in names if len(name) > MAX_CELL_NAME), None):
        found = f"the name of cell {long[:40]}… has {len(long)} characters, more than {MAX_CELL_NAME}"
        raise UsageError(f"{found}: give a guide's or classifier's file a shorter path")
    return cells


def _effective_cell(values: tuple[Any, ...], section: CommonSettings) -> Cell:
    """Return the cell of these values without those that have no effect."""
    axes = dict(zip(AXES, values, strict=True))

    def value_of(name: str) -> Any:
        value = axes.get(name)
        return getattr(section, name, ALL_OPTIONS[name].default) if value is None else value

    for axis in AXES:
        option = ALL_OPTIONS[axis]
        if option.idle_reason(value_of) or axes[axis] == option.unset:
            axes[axis] = option.default if option.axis == "required" else None
    return Cell(**axes)


def cell_settings(sample: CommonSettings, cell: Cell) -> SampleSettings:
    """Return the settings of a cell's images.

    The section's options of a sampler, spacing or guidance rule apply to the section's entry only; others
    have their defaults. UsageError if they do not fit, or a file of learned times does not have them.
    """
    shared = sample.model_dump(include=set(CommonSettings.model_fields))
    for field in REGISTRIES_WITH_OPTIONS:
        if getattr(cell, field) not in (None, sample.entry(field)):
            del shared[f"{field}_options"]
    own = {axis: value for axis, value in cell.axes.items() if axis not in MODEL_AXES}
    return validate(SampleSettings, with_learned_levels({**shared, **own}), f"cell {cell.name}")


def settings_card(settings: SampleSettings, **digests: str) -> dict[str, Any]:
    """Return the settings as a flat card, with `digests` of networks and the version of the sampling code.

    SampleSettings reads its own fields back from it. Values are in their text form. Explicit timesteps
    replace the spacing; options of a sampler, spacing or guidance rule are JSON. `nfe` is the NFE of an image
    where it follows from the settings alone.
    """
    values = {
        name: option.text(getattr(settings, name))
        for name, option in SAMPLING_OPTIONS.items()
        if option.always_in_card or getattr(settings, name) != option.default
    }
    for field, entries in REGISTRIES_WITH_OPTIONS.items():
        key = f"{field}_options"
        values.pop(key, None)
        if options := entries[settings.entry(field)].checked_options(getattr(settings, key)):
            values[key] = canonical_json(options)
    if settings.timesteps is not None:
        values = {name: value for name, value in values.items() if not name.startswith("spacing")}
    if settings.guide is not None:
        values["guidance_rule"] = settings.rule  # implied, and thereby dropped from the settings
    if settings.classifier is not None:
        values["classifier_scale"] = settings.classifier_scale
    if settings.nfe is not None:
        values["nfe"] = settings.nfe
    values |= digests
    return {**values, "sampling_version": sampling_version(values)}


def sampling_version(card: Mapping[str, Any]) -> int:
    """Return the version of the code that samples as a card states.

    That of models that enlarge images, of APG, and of CFG++ in an interval is one more: only their images
    changed.
    """
    enlarges = not {"base_sha256", "real_sha256"}.isdisjoint(card)
    rule = card.get("guidance_rule")
    limited = rule == "cfg++" and "guidance_interval" in card
    return SAMPLING_VERSION + (enlarges or rule == "apg" or limited)


def format_option(name: str, value: Any) -> str:
    """Return the value of an axis as a command line has it; None is written as none."""
    return "none" if value is None else str(ALL_OPTIONS[name].text(value))


def settings_axes(settings: SampleSettings) -> dict[str, Any]:
    """Return the settings' values by axis, as `Cell.axes` of a cell that varies on each of the sampler's."""
    values = {
        axis: ALL_OPTIONS[axis].text(getattr(settings, axis)) for axis in AXES if axis not in MODEL_AXES
    }
    return {axis: value for axis, value in values.items() if value is not None}


def effective_axes(settings: SampleSettings) -> dict[str, Any]:
    """Return the axes that have an effect and differ from their defaults, and always steps and sampler."""
    return {
        axis: value
        for axis, value in settings_axes(settings).items()
        if axis in ("steps", "sampler")
        or (
            not ALL_OPTIONS[axis].idle_reason(lambda name: getattr(settings, name))
            and (axis == "eta" or getattr(settings, axis) != ALL_OPTIONS[axis].default)
        )
    }


# The following functions take `Cell.axes`, or a cell's entry of the scores document.


def describe_line(entry: Mapping[str, Any]) -> str:
    """Return all axes but the steps as text, such as `η = 0, dpm-solver++`: what a plot's line shares."""
    return ", ".join(
        (ALL_OPTIONS[axis].phrase or f"{axis} {{}}").format(format_value(entry[axis]))
        for axis in AXES
        if axis in entry and axis != "steps"
    )


def describe_cell(entry: Mapping[str, Any]) -> str:
    """Return a cell as text, such as `50 steps, η = 0.5`."""
    steps = entry["steps"]
    return f"{steps} step{'s' * (steps != 1)}, {describe_line(entry)}"


def cell_order(entry: Mapping[str, Any]) -> tuple[tuple[bool, Any], ...]:
    """Return a key that sorts cells by their axes, by steps first; cells without an axis come first."""
    return tuple((axis in entry, entry.get(axis)) for axis in AXES)


def open_cells(sample: SampleConfig, sweep: SweepConfig, samples: Path) -> dict[Cell, ImageStore]:
    """Return every cell of the grid with its images; DiffctlError if one is missing or has other settings."""
    again = "make it with `diffctl stage sample`"
    stores: dict[Cell, ImageStore] = {}
    for cell in grid(sample, sweep):
        if not (samples / cell.name).is_dir():
            raise UsageError(f"cell {cell.name} is not in {samples}: {again}")
        store = stores[cell] = open_store(samples / cell.name, CellMeta)
        card = store.meta["card"]
        wanted = {**settings_card(cell_settings(sample, cell)), "num_images": sample.num_images}
        wanted |= {"ema": cell.ema} if cell.ema is not None else {}
        wanted["sampling_version"] = sampling_version(card)
        decides = {*wanted, *SampleSettings.model_fields}  # also what is not wanted, where the card has it
        has = {field: card.get(field) for field in decides} | {"num_images": len(store)}
        if wrong := differing_fields([has, wanted], DERIVED_FIELDS):
            field, (value, wants) = next(iter(wrong.items()))
            found = f"cell {cell.name} was sampled with {field} {value}, not {wants}"
            raise DiffctlError(f"{found}: {again} again")
    return stores
