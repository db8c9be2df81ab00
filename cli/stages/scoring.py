"""A grid of a trained model, sampled and scored outside of the pipeline."""

from pathlib import Path

from cli.shared.progress import progress
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.sweep_scores import evaluate, write_scores
from diffusion.layout import PREPARED, REFERENCE, SCORE_CURVES, SCORES
from diffusion.protocol.grid import grid, open_cells
from diffusion.protocol.sample_sections import SampleConfig, SweepConfig
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.sample.cell_images import drop_other_cells
from diffusion.sample.network_files import CellFiles
from flows.sweep_cells import run_sweep


def scored_grid(
    sample: SampleConfig,
    sweep: SweepConfig,
    section: EvaluateConfig,
    model: Path,
    folder: Path,
) -> ScoresDocument:
    """Sample every cell of the grid and score it against data/reference.

    Writes `samples/`, `scores.json` and `scores.csv` in `folder`. Complete cells are reused, others removed.
    """
    samples, cells = folder / "samples", grid(sample, sweep)
    files = CellFiles(model, sample, cells)
    drop_other_cells(samples, cells)
    run_sweep(sample, cells, files, samples, progress)
    with progress("evaluate") as show:
        document = evaluate(open_cells(sample, sweep, samples), section, REFERENCE, show, PREPARED)
    write_scores(document, folder / SCORES.name, folder / SCORE_CURVES.name)
    return document
