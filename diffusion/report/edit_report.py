"""Scores of edited images against their originals, and their page: one HTML file that needs no network.

The scores are the error of the measurement, PSNR, SSIM and the spread. PSNR and SSIM are those of
torchmetrics (`diffctl[edit]`), an optional dependency.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from matplotlib.axes import Axes
from torch import Tensor

from diffusion.choice.confidence import student_interval
from diffusion.edit.operators import Measurement
from diffusion.images.pictures import png_bytes
from diffusion.images.pixels import to_model
from diffusion.images.store import Images
from diffusion.report.figure_base import as_svg, figure_style, line_colour, log_axis, new_figure
from diffusion.report.sample_pictures import data_uri
from diffusion.report.theme import MARKERS, render

LEVELS = 127.5  # grey levels in a unit of [−1, 1]
MAX_PSNR = 100.0  # dB, of equal images

SCORES = {
    "measured_error": "RMS error of the measurement, in grey levels; hidden pixels count as 0",
    "psnr": "peak signal-to-noise ratio to the original, in dB",
    "ssim": "structural similarity to the original",
    "spread": "RMS deviation over the results of one picture, in grey levels",
}
TEMPLATE = Path(__file__).with_name("edits.html.j2")
PANEL = 2.2  # inches, the height of a row of panels
COLUMNS = 2


def scores_by_picture(results: Tensor, originals: Tensor, measurement: Measurement) -> dict[str, Tensor]:
    """Return SCORES of each picture, (K,) float64, means over its results.

    `results` are uint8 (K, R, C, H, W), `originals` uint8 (K, C, H, W); the measurement has K rows. There is
    no spread for one result.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    count, repeats = results.shape[:2]
    made = results.flatten(0, 1)
    wanted = originals.repeat_interleave(repeats, 0)
    pair = made.double(), wanted.double()
    similarity: Any = structural_similarity_index_measure(*pair, data_range=255.0, reduction="none")
    ratio = peak_signal_noise_ratio(*pair, data_range=255.0, reduction="none", dim=(1, 2, 3))
    by_image: dict[str, Tensor] = {"psnr": ratio.clamp(max=MAX_PSNR), "ssim": similarity}
    if measurement.operator is not None:
        y = measurement.y.cpu().repeat_interleave(repeats, 0)
        error = measurement.operator.apply(to_model(made)) - y
        by_image = {"measured_error": LEVELS * error.double().square().flatten(1).mean(1).sqrt()} | by_image
    scores = {name: values.reshape(count, repeats).mean(1) for name, values in by_image.items()}
    if repeats > 1:
        scores["spread"] = results.double().var(1).flatten(1).mean(1).sqrt()
    return scores


def mean_scores(by_picture: dict[str, Tensor]) -> dict[str, float]:
    """Return the means over pictures, with the ends of their intervals by Student's t: `…_low`, `…_high`."""
    scores: dict[str, float] = {}
    for name, values in by_picture.items():
        low, high = student_interval(values.tolist()) if len(values) > 1 else (-math.inf, math.inf)
        scores |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    return scores


def interval_scores(scores: Mapping[str, float]) -> list[str]:
    """Return the names of the scores that have an interval."""
    return [name for name in scores if f"{name}_low" in scores]


def mean_and_half(scores: Mapping[str, float], name: str) -> str:
    """Return a score as text, with half of its interval."""
    half = (scores[f"{name}_high"] - scores[f"{name}_low"]) / 2
    return f"{scores[name]:.3g} ± {half:.2g}"


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
