"""A scores document as each of its feature spaces sees the sweep."""

from diffusion.choice.selection import select_best, select_front
from diffusion.protocol.scores import CellScores, ScoresDocument

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
