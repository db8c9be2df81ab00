"""The part of a sweep that is of one model, where the sweep has cells of several averages of the weights."""

from diffusion.choice.selection import select_best, select_front
from diffusion.protocol.grid import Cell
from diffusion.protocol.scores import CellScores
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.protocol.settings import MODEL_AXES

_CHOSEN = {"best", "front", "cells"}


def model_scores(document: ScoresDocument, sha256: str) -> ScoresDocument | None:
    """The scores of the model of this model_sha256, as if it alone had been sampled; None where it has none.

    What says which model a cell is of is no axis then. The best cell and the front are of these cells.
    """
    own = [cell for cell in document.cells.values() if cell.card.get("model_sha256") == sha256]
    if not own:
        return None
    if len(own) == len(document.cells) and not any(axis in cell.axes for cell in own for axis in MODEL_AXES):
        return document
    plain = [_as_sampled(cell) for cell in own]
    cells = {Cell(**cell.axes).name: cell for cell in plain}
    shared = {field: getattr(document, field) for field in document.model_fields_set - _CHOSEN}
    return ScoresDocument(**shared, best=select_best(cells), front=select_front(cells), cells=cells)


def best_model_scores(document: ScoresDocument) -> ScoresDocument:
    """The scores of the model that the best cell is of."""
    best = document.cells[document.best.cell]
    return model_scores(document, str(best.card.get("model_sha256"))) or document


def _as_sampled(cell: CellScores) -> CellScores:
    """The cell without what says which model it is of."""
    return CellScores(**{field: getattr(cell, field) for field in cell.model_fields_set - {*MODEL_AXES}})


OF_SPACE = {"extractor", "reference", "spaces", "best", "front", "cells"}  # fields that are not all spaces'


def scores_in_space(document: ScoresDocument, name: str) -> ScoresDocument:
    """The document that the extractor of this name alone would have made; KeyError where it saw nothing.

    Its best cell and its front are chosen by its own scores.
    """
    if name == document.extractor:
        return document
    cells = {place: _cell_in(cell, name) for place, cell in document.cells.items()}
    shared = {field: getattr(document, field) for field in document.model_fields_set - OF_SPACE}
    return ScoresDocument(
        **shared,
        extractor=name,
        reference=document.spaces[name],
        best=select_best(cells),
        front=select_front(cells),
        cells=cells,
    )


def all_spaces(document: ScoresDocument) -> list[ScoresDocument]:
    """The document of each extractor, the one that ranks first; without further ones that alone."""
    return [scores_in_space(document, name) for name in (document.extractor, *document.spaces)]


def _cell_in(cell: CellScores, name: str) -> CellScores:
    seen = cell.spaces[name]
    return CellScores(
        **cell.axes, scores=seen.scores, card=seen.card, errors=seen.errors, classes=seen.classes
    )
