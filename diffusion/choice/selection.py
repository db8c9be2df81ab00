"""Selection of cells: the best one, the Pareto front of score against NFE, and the bias of selection."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion.choice.confidence import errors_of, share_noise
from diffusion.choice.ranking import Cells, best_cell, is_auxiliary
from diffusion.protocol.scores import ImageScores
from diffusion.protocol.scores_document import FrontCell, ScoresDocument, SelectedCell
from diffusion.system.files import write_json


class Choice(NamedTuple):
    """A cell's name, its NFE per image, and its Fréchet distance."""

    cell: str
    nfe: int
    distance: float


def pareto_front(cells: Cells) -> list[Choice]:
    """Return the cells that no other cell beats in both, from the cheapest to the best.

    The distance ranks, which is fair within a sweep: its cells share N and reference.
    """
    choices = [Choice(name, cell.nfe, cell.scores[cell.spec.distance]) for name, cell in cells.items()]
    front: list[Choice] = []
    for choice in sorted(choices, key=lambda choice: (choice.nfe, choice.distance)):
        if not front or choice.distance < front[-1].distance:
            front.append(choice)
    return front


def recommended(cells: Cells, budget: int) -> Choice | None:
    """The best cell for at most `budget` NFE per image; None when the cheapest costs more."""
    affordable = [choice for choice in pareto_front(cells) if choice.nfe <= budget]
    return affordable[-1] if affordable else None


def select_best(cells: Cells) -> SelectedCell:
    """Return the best cell. Its `optimism` is the bias of its score by selection, None without errors."""
    name, metric, value = best_cell(cells)
    too_low = optimism(list(cells.values()), metric)
    return SelectedCell(cell=name, metric=metric, value=value, of=len(cells), optimism=too_low)


def select_front(cells: Cells) -> list[FrontCell]:
    """Return the best cell for each budget, the cheapest first, with the bias of each selection."""
    return [_chosen(choice, cells) for choice in pareto_front(cells)]


def _chosen(choice: Choice, cells: Cells) -> FrontCell:
    affordable = [cell for cell in cells.values() if cell.nfe <= choice.nfe]
    metric = cells[choice.cell].spec.distance
    return FrontCell(
        cell=choice.cell,
        nfe=choice.nfe,
        metric=metric,
        value=choice.distance,
        of=len(affordable),
        optimism=optimism(affordable, metric),
    )


def describe_selection(chosen: SelectedCell) -> str:
    """Return the selection in one line: the score, its cell, and the bias of selection."""
    aside = describe_optimism(chosen)
    return f"{chosen.metric} {chosen.value:.4g} at {chosen.cell}" + (f", {aside}" if aside else "")


def describe_optimism(chosen: SelectedCell) -> str:
    """Return the bias of selection as the end of a sentence about the score; empty without a bias."""
    if not chosen.optimism or chosen.of < 2:
        return ""
    return f"about {chosen.optimism:.2g} too low, as the least of {chosen.of}"


DRAWS = 4000
STEP = 0.5  # how far the scores that choose are moved, in standard deviations of theirs: nearer costs draws
SEED = 2020


def optimism(cells: Sequence[ImageScores], metric: str) -> float | None:
    """Return by how much the least score of these cells is too low on average, ≥ 0; None without errors.

    Scores v with covariance V are split by noise δ ~ N(0, V): v + sδ and v − δ/s are independent (Rasines &
    Young 2023, 2102.02159; for s = 1 they are the scores of two halves of the images). The first select a
    cell, the second estimate its score without bias, so that v is too low by the mean of −δ/s. This holds on
    average over sweeps; for a single one it is a rough number.
    """
    errors = [errors_of(cell, metric) for cell in cells]
    known = [one for one in errors if one is not None]
    if len(known) < len(cells):
        return None
    if len(cells) < 2:
        return 0.0
    values = np.array([cell.scores[metric] for cell in cells])
    draw = np.random.default_rng(SEED)
    if all(share_noise(cells[0], cell) for cell in cells[1:]):
        whole = np.stack(known).astype(np.float64)
        moved = draw.normal(size=(DRAWS, whole.shape[1])) @ whole.T
    else:
        moved = draw.normal(size=(DRAWS, len(cells))) * [float(np.linalg.norm(one)) for one in known]
    chosen = (values + STEP * moved).argmin(axis=1)
    return max(0.0, -float(moved[np.arange(DRAWS), chosen].mean()) / STEP)


def summary(document: ScoresDocument) -> dict[str, Any]:
    """Return the best cell with its scores, axes and NFE, and the numbers of images and cells."""
    best = document.cells[document.best.cell]
    scores = {name: value for name, value in best.scores.items() if not is_auxiliary(name)}
    return {
        "best": {**best.axes, "nfe": best.nfe, **scores},
        "num_images": best.num_images,
        "cells": len(document.cells),
    }


def write_summary(path: Path, document: ScoresDocument) -> None:
    """Write metrics/summary.json, which `dvc metrics` shows; equal scores give equal bytes."""
    write_json(path, summary(document))
