"""How long training, sweep and scoring take from the beginning, by what was measured and what is counted."""

from collections.abc import Callable, Iterator
from typing import Any

from diffusion.check.cost_estimate import scored_images
from diffusion.check.findings import Finding, Project
from diffusion.check.measured import Measured, Outcome, measured, walk_name
from diffusion.check.timing import NOTHING, TimeRange
from diffusion.protocol.grid import Cell, cell_settings, grid
from diffusion.protocol.option_values import format_value
from diffusion.sample.nfe import count_nfe
from diffusion.system.errors import DiffctlError

HOUR = 3600.0
TIME = "time"  # the findings' subject
MAX_LISTED = 12  # values of an axis that a line has room for


def check_time(project: Project, say: Callable[[str], object]) -> Iterator[Finding]:
    """Hours of each part, measured where that is not kept; `say` is told before work begins.

    Nothing of a model that does not fit, which is a finding of its own; a warning where a step or a walk
    cannot be done.
    """
    plan = project.plan
    if plan is None:
        return
    try:
        outcome = measured(project, plan, say)
    except DiffctlError as error:
        yield Finding("warning", TIME, f"not measured: {error}")
        return
    yield from _findings(project, outcome)


def _findings(project: Project, outcome: Outcome) -> Iterator[Finding]:
    """Those of what was measured: each part, and all of them."""
    found = outcome.measured
    training, cells, scoring = training_time(project, found), cell_times(project, found), NOTHING
    sweep = sum(cells.values(), NOTHING)
    yield _training(project, found, training)
    yield _sweep(found, cells, sweep)
    for name, timed in found.extractors.items():
        whole = timed.image.scaled(scored_images(project))
        scoring += whole
        yield _told(
            f"{scored_images(project):,} images seen by {name}: {format_range(whole)}", "scoring", whole
        )
    for name, why in found.missing.items():
        yield Finding("warning", TIME, f"scoring by {name} could not be measured: {why}")
    whole = training + sweep + scoring
    how = "measured now" if outcome.is_new else "measured before"
    what = "all of it but that" if found.missing else "all of it"
    yield _told(f"{what}: {format_range(whole)}, on {found.machine}, {how} ({outcome.path})", "all", whole)


def training_time(project: Project, found: Measured) -> TimeRange:
    """That of all steps; previews, held-out losses and scores in between come on top."""
    return found.step.image.scaled(found.batch * project.config.train.steps)


def cell_times(project: Project, found: Measured) -> dict[Cell, TimeRange]:
    """That of each cell of the sweep."""
    sample, times = project.config.sample, {}
    for cell in grid(sample, project.config.sweep):
        settings = cell_settings(sample, cell)
        seen = count_nfe(settings, project.config.process) * sample.num_images
        times[cell] = found.walks[walk_name(settings)].image.scaled(seen)
    return times


def by_axis(cells: dict[Cell, TimeRange]) -> dict[str, dict[str, TimeRange]]:
    """That of all cells with each value of each axis that has several; `-` is for those without the axis."""
    axes = list(dict.fromkeys(axis for cell in cells for axis in cell.axes))
    sums: dict[str, dict[str, TimeRange]] = {axis: {} for axis in axes}
    for cell, time in cells.items():
        for axis, values in sums.items():
            value = format_value(cell.axes[axis]) if axis in cell.axes else "-"
            values[value] = values.get(value, NOTHING) + time
    return {axis: values for axis, values in sums.items() if len(values) > 1}


def _training(project: Project, found: Measured, whole: TimeRange) -> Finding:
    train, step = project.config.train, found.step.image.scaled(found.batch)
    message = (
        f"{train.steps:,} training steps of {train.batch_size:,} images, {format_range(step)} each: "
        f"{format_range(whole)}{_fewer(found.step.images, found.batch)}"
    )
    return _told(message, "training", whole)


def _sweep(found: Measured, cells: dict[Cell, TimeRange], whole: TimeRange) -> Finding:
    axes = by_axis(cells)
    listed = [
        f"by {axis} {', '.join(f'{value}: {format_duration(time.median)}' for value, time in values.items())}"
        for axis, values in axes.items()
        if len(values) <= MAX_LISTED
    ]
    told = {axis: {value: hours(time) for value, time in values.items()} for axis, values in axes.items()}
    message = "; ".join([f"{len(cells):,} cells of the sweep: {format_range(whole)}", *listed])
    return _told(message, "sweep", whole, by_axis=told)


def _told(message: str, part: str, whole: TimeRange, **more: Any) -> Finding:
    return Finding("ok", TIME, message, values={"part": part, "hours": hours(whole), **more})


def _fewer(images: int, wanted: int) -> str:
    """What was not measured as it will be done."""
    return "" if images == wanted else f", by steps of {images:,} images, of which more at a time cost less"


def hours(time: TimeRange) -> dict[str, float]:
    """A span in hours."""
    return time.scaled(1 / HOUR).model_dump()


def format_range(time: TimeRange) -> str:
    """A span for people: 2.1 min (1.9 min to 2.4 min)."""
    return f"{format_duration(time.median)} ({format_duration(time.least)} to {format_duration(time.most)})"


def format_duration(seconds: float) -> str:
    """Seconds in two or three digits and the unit that suits: 35 ms, 12 s, 2.1 min, 14 h, 5.2 days."""
    for unit, size in (("days", 24 * HOUR), ("h", HOUR), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * size or (unit == "s" and seconds >= 1):
            return f"{seconds / size:,.{0 if seconds >= 20 * size else 1}f} {unit}"
    return f"{1000 * seconds:.3g} ms"
