"""Parts of a scores document: the cells of one model, and the scores of one feature extractor."""

from diffusion.choice.selection import select_best, select_front
from diffusion.protocol.grid import Cell
from diffusion.protocol.scores import CellScores
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.protocol.settings import MODEL_AXES

SELECTED = {"best", "front", "cells"}


def model_scores(document: ScoresDocument, sha256: str) -> ScoresDocument | None:
    """Return the scores of the model with this model_sha256 as if it alone had been sampled, or None.

    The axes of the model are removed. The best cell and the front are selected among these cells.
    """
    own = [cell for cell in document.cells.values() if cell.card.get("model_sha256") == sha256]
    if not own:
        return None
    if len(own) == len(document.cells) and not any(axis in cell.axes for cell in own for axis in MODEL_AXES):
        return document
    plain = [_as_sampled(cell) for cell in own]
    cells = {Cell(**cell.axes).name: cell for cell in plain}
    shared = {field: getattr(document, field) for field in document.model_fields_set - SELECTED}
    return ScoresDocument(**shared, best=select_best(cells), front=select_front(cells), cells=cells)


def best_model_scores(document: ScoresDocument) -> ScoresDocument:
    """Return the scores of the best cell's model."""
    best = document.cells[document.best.cell]
    return model_scores(document, str(best.card.get("model_sha256"))) or document


def _as_sampled(cell: CellScores) -> CellScores:
    """Return the cell without the axes of the model."""
    return CellScores(**{field: getattr(cell, field) for field in cell.model_fields_set - {*MODEL_AXES}})


SPACE_FIELDS = {"extractor", "reference", "spaces", *SELECTED}  # they differ between extractors


def scores_in_space(document: ScoresDocument, name: str) -> ScoresDocument:
    """Return the document of one extractor alone; KeyError if it scored nothing.

    The best cell and the front are selected by its own scores.
    """
    if name == document.extractor:
        return document
    cells = {place: _cell_in(cell, name) for place, cell in document.cells.items()}
    shared = {field: getattr(document, field) for field in document.model_fields_set - SPACE_FIELDS}
    return ScoresDocument(
        **shared,
        extractor=name,
        reference=document.spaces[name],
        best=select_best(cells),
        front=select_front(cells),
        cells=cells,
    )


def all_spaces(document: ScoresDocument) -> list[ScoresDocument]:
    """Return the document of each extractor, the ranking one first."""
    return [scores_in_space(document, name) for name in (document.extractor, *document.spaces)]


def _cell_in(cell: CellScores, name: str) -> CellScores:
    seen = cell.spaces[name]
    return CellScores(
        **cell.axes, scores=seen.scores, card=seen.card, errors=seen.errors, classes=seen.classes
    )
