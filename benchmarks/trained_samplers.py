"""Which sampler for a trained network? `python -m benchmarks.trained_samplers MODEL`, of Fashion-MNIST.

Eight samplers along two spacings make 1,000 images each from the same noise, with 5, 10 and 20 network
evaluations (NFE). A sampler with two calls per step takes the largest NFE that is not above. Fréchet and
kernel distance are to the 10,000 test images, with 95% confidence intervals. All numbers are in
docs/samplers/trained.json; docs/samplers.md has the table and the figure, which it draws again without MODEL.
It takes about twenty minutes of one core.
"""

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks import ROOT, quality
from benchmarks.solver_error import METHODS, PAGE, fitting_steps, log_panel, with_legend
from diffusion.config import load
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extractors import extract, load_extractor
from diffusion.evaluate.features.reference_features import make_reference_of
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.model.model_file import LoadedModel, load_model
from diffusion.protocol.settings import SampleSettings
from diffusion.report.figure_base import LINES, figure_style, line_colour, new_figure
from diffusion.system.devices import default_device
from diffusion.system.files import write_json, write_text
from docs.site.samplers_page import with_trained_table

RESULTS, FIGURE = ROOT / "docs/samplers/trained.json", ROOT / "docs/samplers/trained.svg"
EXTRACTOR = "effnet-lite0-64"
FD, KD = "fd_effnet_lite0_64", "kd_effnet_lite0_64"
NFES, IMAGES = (5, 10, 20), 1000
SPACINGS = ("uniform", "quadratic")
SHARED = (
    "ddim",
    "ddim, η = 1",
    "heun, straight",
    "dpm-solver++",
    "2M SDE",
    "unipc, order 2",
    "ipndm, order 3",
)
CHOSEN = {name: METHODS[name] for name in SHARED} | {"euler-ancestral": {"sampler": "euler-ancestral"}}


def settings_of(method: str, spacing: str, nfe: int) -> SampleSettings:
    """Return a method's settings with as many steps as the NFE allows."""
    chosen = CHOSEN[method]
    return SampleSettings(steps=fitting_steps(chosen["sampler"], nfe), spacing=spacing, **chosen)


def measure_all(loaded: LoadedModel, images: int = IMAGES) -> dict[str, Any]:
    """Return the distances by spacing, method and NFE, and what they were measured with."""
    device, cells = default_device(), list(product(SPACINGS, CHOSEN, NFES))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        _, real = quality.prepared(load(quality.PROFILE), Path(folder))
        extractor = load_extractor(EXTRACTOR)
        reference = make_reference_of(extractor, [real], [extract(extractor, real.images)])
        scorer = Scorer(reference, EvaluateConfig(prc_images=images))
        for number, (spacing, method, nfe) in enumerate(cells, 1):
            made = quality.images_of(loaded, settings_of(method, spacing, nfe), images, device)
            scores = scorer.scores(extract(extractor, made))
            kept = {
                name: float(f"{value:.5g}") for name, value in scores.items() if name.startswith((FD, KD))
            }
            found.setdefault(spacing, {}).setdefault(method, []).append(kept)
            print(f"{number} of {len(cells)}: {spacing}, {method}, {nfe} NFE: {kept[FD]:.0f}", flush=True)
    model = {"model_sha256": loaded.artefact.model_sha256, "steps": loaded.artefact.step}
    return {"nfe": NFES, "images": images, "model": model, "scores": found}


@figure_style()
def figure(results: dict[str, Any]) -> bytes:
    """Draw the Fréchet distance by NFE with its intervals, a panel per spacing."""
    drawn = new_figure(4.2)
    panels = drawn.subplots(1, len(SPACINGS), sharey=True)
    for axes, spacing in zip(panels, SPACINGS, strict=True):
        for number, (method, scores) in enumerate(results["scores"][spacing].items()):
            draw_line(axes, number, method, results["nfe"], scores)
        axes.set_xlabel("NFE")
        log_panel(axes, spacing, xticks=results["nfe"], yticks=(400, 500, 700, 1000, 2000))
    panels[0].set_ylabel("Fréchet distance")
    title = "Fréchet distance of a trained model by NFE for eight samplers and two spacings"
    return with_legend(drawn, panels[0], title, columns=4)


def draw_line(axes: Axes, number: int, method: str, nfes: list[int], scores: list[dict[str, float]]) -> None:
    """Draw one sampler's distances with their intervals, moved apart by a per cent or two."""
    values = np.array([[one[f"{FD}_low"], one[FD], one[f"{FD}_high"]] for one in scores]).T
    apart = np.array(nfes) * 1.012 ** (number - 3.5)
    below, above = values[1] - values[0], values[2] - values[1]
    style: dict[str, Any] = {"color": line_colour(number), "linewidth": 1.4, "markersize": 4}
    style |= {"fmt": "o-" if number < len(LINES) else "s--"}  # colours repeat
    axes.errorbar(apart, values[1], yerr=(below, above), label=method, **style)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trained_samplers")
    parser.add_argument("model", type=Path, nargs="?", metavar="MODEL", help="a model file")
    if model := parser.parse_args().model:
        write_json(RESULTS, measure_all(load_model(model, default_device())))
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    FIGURE.write_bytes(figure(results))
    write_text(PAGE, with_trained_table(PAGE.read_text(encoding="utf-8"), results))


if __name__ == "__main__":
    main()
