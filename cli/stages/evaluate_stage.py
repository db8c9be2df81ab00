"""The stage `evaluate`: the scores of every cell."""

from pathlib import Path

from cli.shared.console import progress
from cli.stages.context import preflight
from diffusion.choice.selection import write_summary
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.sweep_scores import evaluate, write_scores
from diffusion.images.pictures import montage
from diffusion.images.store import ImageStore
from diffusion.layout import PREPARED, REFERENCE, SAMPLES, SCORE_CURVES, SCORES, SUMMARY
from diffusion.protocol.grid import Cell, open_cells
from diffusion.protocol.sample_sections import SampleConfig, SweepConfig
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.system.params import load_section
from tracking.runs.score_logging import log_samples, log_scores


def run_stage(_: object) -> None:
    """Score every cell and log the scores."""
    preflight("evaluate")
    section = load_section("evaluate", EvaluateConfig)
    cells = open_cells(load_section("sample", SampleConfig), load_section("sweep", SweepConfig), SAMPLES)
    scores = score_cells(cells, section, SCORES, SCORE_CURVES)
    write_summary(SUMMARY, scores)
    run_id = log_scores(scores)
    log_samples(run_id, scores, {cell.name: montage(store.images) for cell, store in cells.items()})


def score_cells(
    cells: dict[Cell, ImageStore], section: EvaluateConfig, scores: Path, curves: Path
) -> ScoresDocument:
    """Score cells against data/reference, and write scores (JSON) and curves (CSV)."""
    with progress("evaluate") as show:
        document = evaluate(cells, section, REFERENCE, show, PREPARED)
    write_scores(document, scores, curves)
    return document
