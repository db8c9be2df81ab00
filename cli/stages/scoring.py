"""A grid of a model that is there, sampled and scored beside the pipeline's own."""

from pathlib import Path

from cli.shared.progress import progress
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.sweep_scores import evaluate, write_scores
from diffusion.layout import PREPARED, REFERENCE, SCORE_CURVES, SCORES
from diffusion.protocol.grid import grid, open_cells
from diffusion.protocol.sample_sections import SampleConfig, SweepConfig
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.sample.cell_images import drop_other_cells
from diffusion.sample.ema_models import EMAModelFiles
from flows.sweep_cells import run_sweep


def scored_grid(
    sample: SampleConfig,
    sweep: SweepConfig,
    section: EvaluateConfig,
    model: Path,
    folder: Path,
) -> ScoresDocument:
    """Make every cell of the grid and score it against data/reference.

    In `folder` come `samples/`, `scores.json` and `scores.csv`. What is there already is not made again; what
    is no cell of the grid goes. Errors as of the stages.
    """
    samples, cells = folder / "samples", grid(sample, sweep)
    models = EMAModelFiles(model, cells)
    drop_other_cells(samples, cells)
    run_sweep(sample, cells, models, samples, progress)
    with progress("evaluate") as show:
        document = evaluate(open_cells(sample, sweep, samples), section, REFERENCE, show, PREPARED)
    write_scores(document, folder / SCORES.name, folder / SCORE_CURVES.name)
    return document
