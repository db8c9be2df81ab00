"""Selection of cells: the best one, the front of score against NFE, their bias"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.choice.confidence import errors_of, gap, share_noise
from diffusion.choice.ranking import Cells, best_cell, front_metric, is_auxiliary
from diffusion.protocol.card import Card
from diffusion.protocol.option_tables import MODEL_AXES
from diffusion.protocol.scores_document import (
    CellScores,
    FrontCell,
    ImageScores,
    ScoresDocument,
    SelectedCell,
)
from diffusion.system.files import write_json
from diffusion.system.section import Section

DRAWS = 4000
STEP = 0.5  # how far the scores that choose are moved, in standard deviations of theirs: nearer costs draws
SEED = 2020
SELECTED = {"best", "front", "cells"}  # fields of a document that depend on its cells
SPACE_FIELDS = {"extractor", "reference", "spaces", *SELECTED}  # that differ between extractors


def select(cells: dict[str, CellScores], **shared: Any) -> ScoresDocument:
    """Return the document of these cells and shared values, with the best cell and the front."""
    return ScoresDocument(**shared, best=select_best(cells), front=select_front(cells), cells=cells)


def select_best(cells: Cells) -> SelectedCell:
    """Return the best cell. Its `optimism` is the bias of its score by selection, None without errors."""
    name, metric, value = best_cell(cells)
    too_low = optimism(list(cells.values()), metric)
    return SelectedCell(cell=name, metric=metric, value=value, of=len(cells), optimism=too_low)


def select_front(cells: Cells) -> list[FrontCell]:
    """Return the cells that no other beats in NFE and the score that ranks, with the bias of each selection.

    The cheapest is first. The last one has the score of the best cell.
    """
    front: list[FrontCell] = []
    points = [(cell.nfe, cell.scores[front_metric(cell)], name) for name, cell in cells.items()]
    for nfe, value, name in sorted(points, key=lambda point: point[:2]):
        if not front or value < front[-1].value:
            affordable = [cell for cell in cells.values() if cell.nfe <= nfe]
            metric, of = front_metric(cells[name]), len(affordable)
            too_low = optimism(affordable, metric)
            front.append(FrontCell(cell=name, nfe=nfe, metric=metric, value=value, of=of, optimism=too_low))
    return front


def describe_selection(chosen: SelectedCell) -> str:
    """Return the selection in one line: the score, its cell, and the bias of selection."""
    aside = describe_optimism(chosen)
    return f"{chosen.metric} {chosen.value:.4g} at {chosen.cell}" + (f", {aside}" if aside else "")


def describe_optimism(chosen: SelectedCell) -> str:
    """Return the bias of selection as the end of a sentence about the score; empty without a bias."""
    if not chosen.optimism or chosen.of < 2:
        return ""
    return f"roughly {chosen.optimism:.1g} too low, as the least of {chosen.of}"


def describe_disagreement(document: ScoresDocument) -> str:
    """Return which cell the Fréchet distance prefers to the best one (docs/evaluation.md); else empty."""
    best, cells, metric = document.best, document.cells, document.spec.distance
    other = min(cells, key=lambda name: (cells[name].scores[metric], name != best.cell))
    if other == best.cell or best.metric in ("excess", metric):
        return ""
    found = gap(cells[other], cells[best.cell], metric)
    chance = "" if found is None or found.is_significant else ", within chance"
    return f"{metric} prefers {other} to {best.cell}{chance}"


def optimism(cells: Sequence[ImageScores], metric: str) -> float | None:
    """Return by how much the least score of these cells is too low on average, ≥ 0; None without errors.

    Scores v with covariance V are split by noise δ ~ N(0, V): v + sδ and v − δ/s are independent (Rasines &
    Young 2023, 2102.02159; for s = 1 they are the scores of two halves of the images). The first select a
    cell, the second estimate its score without bias, so that v is too low by the mean of −δ/s. It is
    rough, since scores are skewed (docs/evaluation.md).
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


def write_summary(path: Path, document: ScoresDocument) -> None:
    """Write metrics/summary.json, which `dvc metrics` shows: the best cell, the numbers of images and cells.

    Equal scores give equal bytes.
    """
    best = document.cells[document.best.cell]
    scores = {name: value for name, value in best.scores.items() if not is_auxiliary(name)}
    values = {"best": {**best.axes, "nfe": best.nfe, **scores}, "num_images": best.num_images}
    write_json(path, {**values, "cells": len(document.cells)})


def model_scores(document: ScoresDocument, sha256: str) -> ScoresDocument | None:
    """Return the scores of the model with this model_sha256 as if it alone had been sampled, or None."""
    own = [cell for cell in document.cells.values() if cell.card.get("model_sha256") == sha256]
    if not own:
        return None
    if len(own) == len(document.cells) and not any(axis in cell.axes for cell in own for axis in MODEL_AXES):
        return document
    plain = [CellScores(**_fields(cell, {*MODEL_AXES})) for cell in own]
    return select({cell.name: cell for cell in plain}, **_fields(document, SELECTED))


def best_model_scores(document: ScoresDocument) -> ScoresDocument:
    """Return the scores of the best cell's model."""
    best = document.cells[document.best.cell]
    return model_scores(document, str(best.card.get("model_sha256"))) or document


def scores_of_cells(
    document: ScoresDocument, keep: Callable[[CellScores, str], bool]
) -> ScoresDocument | None:
    """Return the scores of the cells that `keep`, given a cell and its name, accepts; None without any."""
    cells = {name: cell for name, cell in document.cells.items() if keep(cell, name)}
    return select(cells, **_fields(document, SELECTED)) if cells else None


def scores_in_space(document: ScoresDocument, name: str) -> ScoresDocument:
    """Return the document of one extractor alone, with its own selection; KeyError if it scored nothing."""
    if name == document.extractor:
        return document
    fields = ("scores", "card", "errors", "classes")
    cells = {
        place: CellScores(**cell.axes, **{field: getattr(cell.spaces[name], field) for field in fields})
        for place, cell in document.cells.items()
    }
    shared = _fields(document, SPACE_FIELDS)
    return select(cells, **shared, extractor=name, reference=document.spaces[name])


def all_spaces(document: ScoresDocument) -> list[ScoresDocument]:
    """Return the document of each extractor, the ranking one first."""
    return [scores_in_space(document, name) for name in (document.extractor, *document.spaces)]


def _fields(section: Section, without: set[str]) -> dict[str, Any]:
    """Return the fields that are set, without some."""
    return {field: getattr(section, field) for field in section.model_fields_set - without}


def best_card(scores: ScoresDocument) -> Card:
    """Return the card of the best cell."""
    return scores.cells[scores.best.cell].card
