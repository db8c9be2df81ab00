"""The scores of edits as an HTML page: one file that needs no network, with curves and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from matplotlib.axes import Axes

from diffusion.edit.scores import SCORES, interval_scores, mean_and_half
from diffusion.images.pictures import png_bytes
from diffusion.images.store import Images
from diffusion.report.figure_base import as_svg, figure_style, line_colour, log_axis, new_figure
from diffusion.report.sample_pictures import data_uri
from diffusion.report.theme import MARKERS, render

TEMPLATE = Path(__file__).with_name("edits.html.j2")
PANEL = 2.2  # inches, the height of a row of panels
COLUMNS = 2


def render_edits(document: dict[str, Any], sheets: Sequence[Images], command: str) -> str:
    """Return the page of the JSON of `diffctl evaluate --edit`; `sheets` has a picture of each cell.

    Those with the highest NFE of an operator and method are shown.
    """
    cells: list[dict[str, Any]] = document["cells"]
    names = interval_scores(cells[0]["scores"])
    numbers: dict[str, list[int]] = {one["operator"]: [] for one in cells}
    for number, one in enumerate(cells):
        numbers[one["operator"]].append(number)
    highest: dict[tuple[str, str], int] = {}
    for number in sorted(range(len(cells)), key=lambda number: int(cells[number]["nfe"])):
        highest[cells[number]["operator"], cells[number]["method"]] = number
    shown = set(highest.values())
    operators = [
        {
            "name": name,
            "figure": draw_scores([cells[number] for number in own], names, f"edit{place}"),
            "rows": [_row(cells[number], names) for number in own],
            "pictures": [
                {**_row(cells[number], ()), "image": data_uri(png_bytes(sheets[number]))}
                for number in own
                if number in shown
            ],
        }
        for place, (name, own) in enumerate(numbers.items())
    ]
    labels = {name: SCORES.get(name, "kernel distance to real images") for name in names}
    return render(TEMPLATE, document=document, operators=operators, labels=labels, command=command)


def _row(cell: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    numbers = [mean_and_half(cell["scores"], name) for name in names]
    return {"method": cell["method"], "nfe": cell["nfe"], "scores": numbers}


@figure_style()
def draw_scores(cells: Sequence[dict[str, Any]], names: Sequence[str], prefix: str) -> Markup:
    """Draw each score over NFE, with its interval; a line for each method."""
    rows = -(-len(names) // COLUMNS)
    figure = new_figure(PANEL * rows)
    panels = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axes, name in zip(panels, names, strict=False):
        _draw(axes, cells, name)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    panels[0].legend(fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)
    return as_svg(figure, prefix, str(escape(f"Scores of {cells[0]['operator']} over NFE")))


def _draw(axes: Axes, cells: Sequence[dict[str, Any]], name: str) -> None:
    for number, method in enumerate(dict.fromkeys(one["method"] for one in cells)):
        own = sorted((one for one in cells if one["method"] == method), key=lambda one: int(one["nfe"]))
        means = [one["scores"][name] for one in own]
        ends = [[one["scores"][f"{name}_{end}"] for one in own] for end in ("low", "high")]
        halves = [[abs(end - mean) for end, mean in zip(side, means, strict=True)] for side in ends]
        marker = MARKERS[number % len(MARKERS)]
        style = {"color": line_colour(number), "capsize": 3, "markersize": 4, "label": method}
        axes.errorbar([one["nfe"] for one in own], means, halves, fmt=f"{marker}-", **style)
    log_axis(axes, "x", lambda value: f"{value:g}")
    axes.set_xlabel("NFE")
    axes.set_ylabel(name)
