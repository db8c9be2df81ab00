"""The charts of the report: scores over steps, the Pareto front, the training loss, and the montage."""

import csv
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from diffusion.images.store import Images
from diffusion.report.figure_base import figure_style, image_axes, line_colour, log_axis
from diffusion.report.theme import LIGHT, LINES, MARKERS
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.train.train_config import BAND_NAMES

SIZE = (4.6, 3.2)  # inches, so that text stays readable on a phone
LEGEND_CHARACTERS = 56  # per line of a legend
LEGEND_ROW = 0.18  # inches
LOG_RANGE = 8  # of the values on a log axis, at least: it has few labels

Values = NDArray[np.float64]
VALIDATION, RAW = "val_", "val_raw_"  # prefixes of columns: validation loss of the EMA, of the raw weights
VALIDATION_PARTS = {
    "validation mse and vlb, EMA": ("mse", "vlb"),
    "validation loss by band of the log-SNR, EMA": BAND_NAMES,
    "validation loss by quarter of t, EMA": tuple(f"loss_q{quarter}" for quarter in range(4)),  # old curves
}
FRONT, NO_FRONT = "front", "other cells"  # names of lines
COMPARABLE, NOT_COMPARABLE = "published, comparable", "published, not comparable"


class CurvePoint(NamedTuple):
    """A score at `x` steps or NFE, its confidence interval, and the single values `each` if it is a mean."""

    x: int
    line: str
    value: float
    interval: tuple[float, float] | None = None
    each: tuple[float, ...] = ()


@figure_style()
def score_curve(
    points: Sequence[CurvePoint],
    label: str,
    level: tuple[float, str] | None = None,
    x_label: str = "sampling steps",
    marks: Sequence[CurvePoint] = (),
) -> Figure:
    """Draw a score over the number of steps, or over `x_label`; lines in the order of the points.

    `level` is the height and name of a horizontal line. `marks` are published scores, by their line
    COMPARABLE or not.
    """
    figure, axes = _axes()
    for number, name in enumerate(dict.fromkeys(point.line for point in points)):
        _draw_line(axes, sorted(point for point in points if point.line == name), number)
    for name, fill in ((NOT_COMPARABLE, "none"), (COMPARABLE, LIGHT["ink"])):
        if shown := [mark for mark in marks if mark.line == name]:
            style = {"color": LIGHT["ink"], "markerfacecolor": fill, "markersize": 8, "label": name}
            axes.plot(*_coordinates(shown), "*", **style)  # type: ignore[arg-type]
    _label_axes(axes, [*points, *marks], x_label, label, level)
    return figure


def _draw_line(axes: Axes, line: Sequence[CurvePoint], number: int) -> None:
    """Draw a line with its band of intervals, and the single values as dots."""
    colour, (x, values) = line_colour(number), _coordinates(line)
    marker = MARKERS[(number + number // len(LINES)) % len(MARKERS)]  # each pair with a colour once
    style = {"marker": marker, "linewidth": 1.8, "markersize": 5}
    axes.plot(x, values, color=colour, label=line[0].line, **style)  # type: ignore[arg-type]
    if all(point.interval for point in line):
        low, high = zip(*(point.interval for point in line if point.interval), strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    if dots := [(point.x, value) for point in line for value in point.each]:
        axes.plot(*zip(*dots, strict=True), ".", color=colour, markersize=5, alpha=0.55)


def _coordinates(points: Sequence[CurvePoint]) -> tuple[list[int], list[float]]:
    return [point.x for point in points], [point.value for point in points]


@figure_style()
def front(points: Sequence[CurvePoint], label: str, level: tuple[float, str] | None = None) -> Figure:
    """Draw every cell by its NFE, and the line FRONT as steps; `level` as in `score_curve`."""
    figure, axes = _axes()
    muted = {"color": LIGHT["muted"], "markersize": 4, "alpha": 0.6}
    steps = {"color": line_colour(0), "markersize": 6, "drawstyle": "steps-post"}
    for name, form, style in ((NO_FRONT, "o", muted), (FRONT, "o-", steps)):
        shown = [point for point in points if point.line == name]
        axes.plot(*_coordinates(shown), form, label=name, **style)  # type: ignore[arg-type]
    _label_axes(axes, points, "NFE per image", label, level)
    return figure


class TrainingCurve(NamedTuple):
    """`loss` (N,) after `steps`, and validation losses by column, (M,) each, after `val_steps`."""

    steps: Values
    loss: Values
    val_steps: Values
    validation: dict[str, Values]

    def lines(self) -> dict[str, Values]:
        """Return the validation losses to draw, by label."""
        named = {f"{VALIDATION}loss": "validation, EMA", f"{RAW}loss": "validation, raw weights"}
        return {label: self.validation[name] for name, label in named.items() if name in self.validation}

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values of the validation losses."""
        if not len(self.val_steps):
            return []
        loss = self.validation[f"{VALIDATION}loss"]
        least = int(np.nanargmin(loss)) if np.isfinite(loss).any() else 0
        text = f"{loss[-1]:.4g}, least {loss[least]:.4g} after step {self.val_steps[least]:,.0f}"
        facts = [("validation loss, EMA", text)]
        if f"{RAW}loss" in self.validation:
            facts.append(("validation loss, raw weights", f"{self.validation[f'{RAW}loss'][-1]:.4g}"))
        for name, parts in VALIDATION_PARTS.items():
            columns = [self.validation.get(f"{VALIDATION}{part}") for part in parts]
            if values := [f"{column[-1]:.4g}" for column in columns if column is not None]:
                facts.append((name, ", ".join(values)))
        return facts


def read_curve(path: Path) -> TrainingCurve:
    """Read the training's CSV, with at least `step` and `loss`; DiffctlError for another file."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in (rows[0] if rows else ()) if name and name.startswith(VALIDATION)]
        columns = {name: np.array([float(row[name]) for row in rows]) for name in ("step", "loss", *names)}
        if not rows:
            raise ValueError("it holds no step")
    except FileNotFoundError:
        raise UsageError(f"no loss curve at {path}: make it with `diffctl stage train`") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DiffctlError(f"{path} is no loss curve ({error}): make it with `diffctl stage train`") from None
    measured = ~np.isnan(columns.get(f"{VALIDATION}loss", np.full(len(rows), np.nan)))
    trained = ~(measured & np.isnan(columns["loss"]))  # a row may have validation losses only
    steps, validation = columns["step"], {name: columns[name][measured] for name in names}
    return TrainingCurve(steps[trained], columns["loss"][trained], steps[measured], validation)


@figure_style()
def loss_curve(curve: TrainingCurve, label: str) -> Figure:
    """Draw the loss (thin), its moving average (thick) and validation losses. A wide range has a log axis."""
    heldout = curve.lines()
    figure, axes = _axes()
    colour, smooth = line_colour(0), moving_average(curve.loss)
    axes.plot(curve.steps, curve.loss, color=colour, linewidth=0.8, alpha=0.4, label="as logged")
    axes.plot(curve.steps, smooth, color=colour, linewidth=1.8, label="moving average")
    for (name, values), line, marker in zip(heldout.items(), LINES[1:], MARKERS[1:], strict=False):
        style = {"color": LIGHT[line], "marker": marker, "markersize": 4, "label": name}
        axes.plot(curve.val_steps, values, **style)  # type: ignore[arg-type]
    values = np.concatenate([curve.loss, *heldout.values()])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() / values.min() > LOG_RANGE:
        log_axis(axes, "y", _two_or_five)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set(xlabel="training step", ylabel=label)
    _legend(axes)
    return figure


def moving_average(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over a centred window of a twentieth of the (N,) values, without NaN and infinity."""
    window = np.ones(2 * (len(values) // 40) + 1)
    finite = np.isfinite(values)
    sums = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    counts = np.convolve(finite, window, mode="same")
    return np.asarray(np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0))


@figure_style()
def montage(tiles: Mapping[tuple[int, str], Images]) -> Figure:
    """Show pictures (H, W, C) by (steps, line): a row per line, a column per number of steps.

    A place without a picture is empty, such as η = 1 at one step, where η has no effect.
    """
    steps, lines = sorted({steps for steps, _ in tiles}), list(dict.fromkeys(line for _, line in tiles))
    height, width = next(iter(tiles.values())).shape[:2]
    layout = ConstrainedLayoutEngine(h_pad=0.03, w_pad=0.03, hspace=0.0, wspace=0.0)
    size = 2.2 * len(steps) + 0.3, (2.2 * height / width + 0.06) * len(lines) + 0.25
    figure = Figure(size, layout=layout)
    grid = figure.subplots(len(lines), len(steps), squeeze=False)
    for row, line in zip(grid, lines, strict=True):
        for axes, count in zip(row, steps, strict=True):
            if (tile := tiles.get((count, line))) is None:
                axes.set(xticks=[], yticks=[], frame_on=False)
            else:
                image_axes(axes, tile)
        row[0].set_ylabel(line.replace(", ", "\n"))
    for axes, count in zip(grid[0], steps, strict=True):
        axes.set_title(f"{count} step{'s' if count > 1 else ''}", fontsize=10)
    return figure


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(SIZE, layout="constrained")
    return figure, figure.subplots()


def _label_axes(
    axes: Axes, points: Sequence[CurvePoint], x_label: str, label: str, level: tuple[float, str] | None
) -> None:
    """Add a tick at each x on a logarithmic axis, the level of real images, and the legend.

    The score's axis is logarithmic if the scores alone need it and all is positive: real images may score
    nearly 0.
    """
    x, values = _coordinates(points)
    log_axis(axes, "x")
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(x))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(min(x) / 1.15, max(x) * 1.15)
    lowest = min(values)
    if level is not None:
        height, name = level
        axes.axhline(height, color=LIGHT["ink"], linewidth=1.2, linestyle=(0, (5, 3)), label=name)
        lowest = min(lowest, height)
    if lowest > 0 and max(values) / min(values) > LOG_RANGE:
        log_axis(axes, "y", _two_or_five)
    axes.set(xlabel=x_label, ylabel=label)
    _legend(axes)


def _two_or_five(value: float) -> str:
    """Label only 2 and 5 between powers of ten, so that labels do not overlap."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _legend(axes: Axes) -> None:
    """Put the legend above the axes, in as many columns as fit; enlarge the figure by its rows."""
    handles, labels = axes.get_legend_handles_labels()
    names = [textwrap.fill(label, LEGEND_CHARACTERS - 5) for label in labels]
    columns = next((n for n in (4, 3, 2) if _legend_width(names, n) <= LEGEND_CHARACTERS), 1)
    rows = -(-len("\n".join(names).splitlines()) // columns)
    figure = axes.get_figure(root=True)
    assert figure, "the axes belong to a figure"
    figure.set_size_inches(SIZE[0], SIZE[1] + LEGEND_ROW * (rows - 1))
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "borderaxespad": 0.2}
    place |= {"ncols": columns, "fontsize": 9, "handlelength": 1.6, "columnspacing": 1.0}
    axes.legend(handles, names, handletextpad=0.5, **place)


def _legend_width(names: Sequence[str], columns: int) -> int:
    """Return the width of a legend in characters. Columns are filled one after the other."""
    parts = np.array_split(np.array([len(name) for name in names]), columns)
    return sum(int(part.max()) + 5 for part in parts if len(part))
