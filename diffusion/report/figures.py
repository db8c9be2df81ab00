"""The report's figures, each drawn once: as inline SVG in the page's own colours and font, and as PNG."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from diffusion.images.store import Images
from diffusion.report.theme import LIGHT, LINES, MARKERS
from diffusion.report.training_curve import TrainingCurve

SIZE = (4.6, 3.2)  # inches: small, so that text stays readable where a phone shrinks the figure
LEGEND_CHARACTERS = 56  # of a line above a figure of this width
ROW = 0.18  # inches of a legend's further row
STYLE: Any = {  # matplotlib types its settings' names one by one
    "svg.fonttype": "none",
    "svg.hashsalt": "diffctl",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.7,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "legend.frameon": False,
}


class CurvePoint(NamedTuple):
    """A cell's score, its confidence interval where it has one, and `each` that it is the mean of."""

    steps: int
    line: str
    value: float
    interval: tuple[float, float] | None = None
    each: tuple[float, ...] = ()


class PublishedMark(NamedTuple):
    """A published score beside a curve, at what an image of it costs."""

    x: int
    value: float
    is_comparable: bool


class CostPoint(NamedTuple):
    """A cell by what an image costs and how good it is, and whether no other beats it in both."""

    evaluations: int
    value: float
    on_front: bool


def score_curve(
    points: Sequence[CurvePoint],
    label: str,
    level: tuple[float, str] | None = None,
    x_label: str = "sampling steps",
    marks: Sequence[PublishedMark] = (),
) -> Figure:
    """A score over the number of steps, or what `x_label` says; the lines in the order of the points.

    `level` is a horizontal line and its name. `marks` are drawn beside the lines, hollow where they are not
    comparable.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes()
        for number, name in enumerate(dict.fromkeys(point.line for point in points)):
            line = sorted(point for point in points if point.line == name)
            axes.plot(
                [point.steps for point in line],
                [point.value for point in line],
                color=LIGHT[LINES[number % len(LINES)]],
                marker=MARKERS[number % len(MARKERS)],
                linewidth=1.8,
                markersize=5,
                label=name,
            )
            if all(point.interval for point in line):
                low, high = zip(*(point.interval for point in line if point.interval), strict=True)
                axes.fill_between(
                    [point.steps for point in line],
                    low,
                    high,
                    color=LIGHT[LINES[number % len(LINES)]],
                    alpha=0.12,
                    linewidth=0,
                )
            _draw_each(axes, line, LIGHT[LINES[number % len(LINES)]])
        for comparable in sorted({mark.is_comparable for mark in marks}):
            _draw_marks(axes, [mark for mark in marks if mark.is_comparable == comparable], comparable)
        _steps_axis(axes, sorted({point.steps for point in points} | {mark.x for mark in marks}), x_label)
        _score_axis(axes, label, [*(point.value for point in points), *(mark.value for mark in marks)], level)
        _legend(axes)
    return figure


def _draw_each(axes: Axes, line: Sequence[CurvePoint], colour: str) -> None:
    """What the points of a line are means of, as small dots."""
    dots = [(point.steps, value) for point in line for value in point.each]
    if dots:
        axes.plot(*zip(*dots, strict=True), ".", color=colour, markersize=5, alpha=0.55)


def _draw_marks(axes: Axes, marks: Sequence[PublishedMark], comparable: bool) -> None:
    axes.plot(
        [mark.x for mark in marks],
        [mark.value for mark in marks],
        "*",
        color=LIGHT["ink"],
        markerfacecolor=LIGHT["ink"] if comparable else "none",
        markersize=8,
        label="published, comparable" if comparable else "published, not comparable",
    )


def front(offers: Sequence[CostPoint], label: str, level: tuple[float, str] | None = None) -> Figure:
    """Every cell by its cost, in order; the front as steps of what a budget buys; `level` as in a curve."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes()
        best = [offer for offer in offers if offer.on_front]
        others = [offer for offer in offers if not offer.on_front]
        line, muted = LIGHT[LINES[0]], LIGHT["muted"]
        axes.plot(*_coordinates(others), "o", color=muted, markersize=4, alpha=0.6, label="other cells")
        axes.plot(*_coordinates(best), "o-", color=line, markersize=6, drawstyle="steps-post", label="front")
        _steps_axis(axes, sorted({offer.evaluations for offer in offers}), "network evaluations an image")
        _score_axis(axes, label, [offer.value for offer in offers], level)
        _legend(axes)
    return figure


def _coordinates(offers: Sequence[CostPoint]) -> tuple[list[int], list[float]]:
    return [offer.evaluations for offer in offers], [offer.value for offer in offers]


def loss_curve(curve: TrainingCurve) -> Figure:
    """The training loss as logged (thin) and its moving average (thick), the held-out losses with markers.

    On a logarithmic axis where all are above 0.
    """
    steps, loss, heldout = curve.steps, curve.loss, curve.lines()
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes()
        colour = LIGHT[LINES[0]]
        axes.plot(steps, loss, color=colour, linewidth=0.8, alpha=0.4, label="as logged")
        axes.plot(steps, moving_average(loss), color=colour, linewidth=1.8, label="moving average")
        for (label, values), line, marker in zip(heldout.items(), LINES[1:], MARKERS[1:], strict=False):
            shown = axes.plot(curve.heldout_steps, values, color=LIGHT[line], marker=marker, label=label)
            shown[0].set_markersize(4)
        finite = np.concatenate([loss, *heldout.values()])
        finite = finite[np.isfinite(finite)]
        if len(finite) and finite.min() > 0:
            _log_axis(axes)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("training step")
        axes.set_ylabel("loss")
        _legend(axes)
    return figure


def moving_average(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over a centred window of a twentieth of the (N,) values; what is not finite is left out."""
    window = np.ones(2 * (len(values) // 40) + 1)
    finite = np.isfinite(values)
    sums = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    counts = np.convolve(finite, window, mode="same")
    return np.asarray(np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0))


def montage(tiles: Mapping[tuple[int, str], Images]) -> Figure:
    """One picture (H, W, C) for each (steps, line), rows lines and columns steps."""
    steps, lines = sorted({steps for steps, _ in tiles}), list(dict.fromkeys(line for _, line in tiles))
    with matplotlib.rc_context(STYLE):
        height, width = next(iter(tiles.values())).shape[:2]
        layout = ConstrainedLayoutEngine(h_pad=0.03, w_pad=0.03, hspace=0.0, wspace=0.0)
        figure = Figure(
            (2.2 * len(steps) + 0.3, (2.2 * height / width + 0.06) * len(lines) + 0.25), layout=layout
        )
        grid = figure.subplots(len(lines), len(steps), squeeze=False)
        for row, line in zip(grid, lines, strict=True):
            for axes, count in zip(row, steps, strict=True):
                tile = tiles[count, line]
                grey = tile.shape[2] == 1
                axes.imshow(tile[:, :, 0] if grey else tile, cmap="gray" if grey else None, vmin=0, vmax=255)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            row[0].set_ylabel(line.replace(", ", "\n"))
        for axes, count in zip(grid[0], steps, strict=True):
            axes.set_title(f"{count} step{'s' if count > 1 else ''}", fontsize=10)
    return figure


def as_png(figure: Figure) -> bytes:
    """The figure as PNG on white, the same bytes every time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def as_svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an <svg> element for the page: CSS variables for colours, the page's font, no namespaces.

    `name` sets its ids apart from other drawings on the page; `title` is what a screen reader says.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g) id="[^"]*"', r"\1", text)  # nothing refers to these
    text = re.sub(r'(?<= id=")', f"{name}-", text)
    text = re.sub(r'(?<=xlink:href="#)|(?<=url\(#)', f"{name}-", text).replace("xlink:href", "href")
    for colour, value in LIGHT.items():
        text = text.replace(value, f"var(--{colour})")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    viewbox = re.search(r'viewBox="[^"]*"', text)
    assert viewbox, "matplotlib writes a viewBox"
    body = text[text.index(">") + 1 :]
    return f'<svg {viewbox[0]} role="img" aria-label="{title}">{body}'.strip()


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(SIZE, layout="constrained")
    return figure, figure.subplots()


def _steps_axis(axes: Axes, steps: Sequence[int], label: str = "sampling steps") -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(steps)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(min(steps) / 1.15, max(steps) * 1.15)
    axes.set_xlabel(label)


def _score_axis(axes: Axes, label: str, values: Sequence[float], level: tuple[float, str] | None) -> None:
    """Scores with the level of real images; logarithmic where the scores alone need it and all are positive.

    Real images may score nearly 0, which would take most of a logarithmic axis, or by chance below it.
    """
    lowest = min(values)
    if level is not None:
        height, name = level
        axes.axhline(height, color=LIGHT["ink"], linewidth=1.2, linestyle=(0, (5, 3)), label=name)
        lowest = min(lowest, height)
    if lowest > 0 and max(values) / min(values) > 8:
        _log_axis(axes)
    axes.set_ylabel(label)


def _log_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(FuncFormatter(_two_or_five))


def _two_or_five(value: float, _: int | None) -> str:
    """Labels between the powers of ten, at 2 and 5 alone, so that they do not touch."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _legend(axes: Axes) -> None:
    """Above the drawing, in as many columns as there is room for; the figure grows by its rows."""
    _, names = axes.get_legend_handles_labels()
    columns = next((n for n in (4, 3, 2) if _legend_width(names, n) <= LEGEND_CHARACTERS), 1)
    rows = -(-len(names) // columns)
    figure = axes.get_figure(root=True)
    assert figure, "the axes are of a figure"
    figure.set_size_inches(SIZE[0], SIZE[1] + ROW * (rows - 1))
    entries: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "borderaxespad": 0.2}
    axes.legend(ncols=columns, handlelength=1.6, handletextpad=0.5, columnspacing=1.0, fontsize=9, **entries)


def _legend_width(names: Sequence[str], columns: int) -> int:
    """Characters that the names take in columns, which are filled one after the other, with their lines."""
    parts = np.array_split(np.array([len(name) for name in names]), columns)
    return sum(int(part.max()) + 5 for part in parts if len(part))
