"""The figure of FID by hours of docs/cifar10.md, from its JSON: `python -m benchmarks.cifar10_curve`."""

import json
from typing import Any

from matplotlib.figure import Figure

from benchmarks import ROOT
from diffusion.report.figure_base import figure_style, line_colour, new_figure, svg_file

FOLDER = ROOT / "docs/cifar10"
TITLE = "FID of 2,000 images by hours of training, for this profile and diffusers"
HOURS_PER_STEP = 3.1 / 36_000  # of the training in choice.json

Point = dict[str, Any]


def read(name: str) -> Any:
    """Return the content of a JSON file of the page."""
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def series() -> dict[str, list[Point]]:
    """Return the points of each training without guidance, each with `hours` and `scores`."""
    end = next(cell for cell in read("choice.json")["cells"] if cell["cell"].endswith("guidance0"))
    ours = [{"steps": point["steps"], "scores": point["scores"]} for point in read("curve.json")["points"]]
    ours.append({"steps": 36_000, "scores": end["scores"]})
    for point in ours:
        point["hours"] = point["steps"] * HOURS_PER_STEP
    pairs = [point for point in read("diffusers.json")["hours"]["points"] if not point["guidance"]]
    short = [point for point in pairs if point["network"] == "diffctl"]
    theirs = [point for point in pairs if point["network"] == "diffusers"]
    return {
        "this profile": sorted(ours, key=lambda point: point["steps"]),
        "this profile with 6,600 steps": short,
        "diffusers with 6,000 steps": [point for point in theirs if point["steps"] == 6_000],
        "diffusers": [point for point in theirs if point["steps"] == 36_000],
    }


@figure_style()
def figure() -> Figure:
    """Return the curves of FID by hours, with the intervals of the choice of images."""
    drawn = new_figure(3.2)
    axes = drawn.subplots()
    for number, (label, points) in enumerate(series().items()):
        fids = [point["scores"]["fid"] for point in points]
        low = [point["scores"]["fid"] - point["scores"]["fid_low"] for point in points]
        high = [point["scores"]["fid_high"] - point["scores"]["fid"] for point in points]
        style: Any = {"color": line_colour(number), "marker": "o", "markersize": 4, "capsize": 3}
        axes.errorbar([point["hours"] for point in points], fids, (low, high), label=label, **style)
    axes.set(xlabel="hours of training", ylabel="FID of 2,000 images", xlim=(0, 3.3))
    axes.legend()
    return drawn


if __name__ == "__main__":
    (FOLDER / "curve.svg").write_bytes(svg_file(figure(), TITLE))
