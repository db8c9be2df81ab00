"""Of a sweep over averages, the part that is of one model: its cells as if it alone had been sampled."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from diffusion.choice.document_slices import best_model_scores, model_scores
from diffusion.choice.gate import card_diff, decide
from diffusion.choice.selection import select_best, select_front
from diffusion.protocol.grid import Cell
from diffusion.protocol.scores import CellScores
from diffusion.protocol.scores_document import ScoresDocument, document_values
from tests.helpers.scores_document import document

WIDTHS = (None, 0.05, 0.2)
SHA256 = {width: f"{number}" * 64 for number, width in enumerate(WIDTHS)}
POINTS = ((5, 0.0), (5, 1.0), (10, 0.0))
CELLS = [*product(WIDTHS, POINTS)]


def swept(values: dict[tuple[float | None, tuple[int, float]], float]) -> ScoresDocument:
    """A document of a sweep over averages, each with its own model, with these kernel distances."""
    parts = {width: alone(width, values) for width in WIDTHS}
    cells = {
        Cell(**{**cell.axes, "ema": width}).name: CellScores(
            **document_values(cell), **({"ema": width} if width is not None else {})
        )
        for width, part in parts.items()
        for cell in part.cells.values()
    }
    whole = {**document_values(parts[None]), "best": select_best(cells), "front": select_front(cells)}
    return ScoresDocument(**{**whole, "cells": cells})


def alone(width: float | None, values: dict[tuple[float | None, tuple[int, float]], float]) -> ScoresDocument:
    kernel = {point: values[width, point] for point in POINTS}
    return document(kernel, model_sha256=SHA256[width], ema=True if width is None else width)


every_value = st.lists(st.floats(0.01, 1), min_size=len(CELLS), max_size=len(CELLS), unique=True).map(
    lambda values: dict(zip(CELLS, values, strict=True))
)


@given(every_value)
def test_a_models_part_is_what_a_sweep_of_it_alone_says(values: dict) -> None:
    whole = swept(values)
    for width in WIDTHS:
        assert document_values(model_scores(whole, SHA256[width])) == document_values(alone(width, values))
    assert model_scores(whole, "f" * 64) is None


@given(every_value)
def test_the_best_models_part_has_the_best_cell(values: dict) -> None:
    whole = swept(values)
    part, best = best_model_scores(whole), whole.cells[whole.best.cell]
    assert part.best.value == whole.best.value == min(values.values())
    assert part.cells[part.best.cell].card["model_sha256"] == SHA256[best.ema]
    assert best_model_scores(part) is part


def test_an_average_is_held_against_a_champion_of_another_one() -> None:
    values = {cell: 0.1 + 0.01 * number for number, cell in enumerate(CELLS)}
    champion, candidate = alone(None, values), model_scores(swept(values), SHA256[0.2])
    assert candidate is not None
    assert not card_diff(candidate.cells["steps5-eta0"], champion.cells["steps5-eta0"])
    verdict = decide(candidate.cells, champion.cells, "version 1")
    assert not verdict.better
    assert "not comparable" not in verdict.reason
