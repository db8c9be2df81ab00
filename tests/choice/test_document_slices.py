"""Slices of a sweep over EMA profiles: the cells of one model, as in a sweep of that model."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from diffusion.choice.confidence import card_diff
from diffusion.choice.gate import decide
from diffusion.choice.selection import best_model_scores, model_scores, select_best, select_front
from diffusion.protocol.grid import Cell
from diffusion.protocol.scores import CellScores
from diffusion.protocol.scores_document import ScoresDocument, document_values
from tests.helpers.scores_document import document

PROFILES = (None, 0.05, 0.2)
SHA256 = {profile: f"{number}" * 64 for number, profile in enumerate(PROFILES)}
POINTS = ((5, 0.0), (5, 1.0), (10, 0.0))
CELLS = [*product(PROFILES, POINTS)]


def swept(values: dict[tuple[float | None, tuple[int, float]], float]) -> ScoresDocument:
    """Return a document of a sweep over EMA profiles (one model each) with these kernel distances."""
    parts = {profile: alone(profile, values) for profile in PROFILES}
    cells = {
        Cell(**{**cell.axes, "ema": profile}).name: CellScores(
            **document_values(cell), **({"ema": profile} if profile is not None else {})
        )
        for profile, part in parts.items()
        for cell in part.cells.values()
    }
    full = {**document_values(parts[None]), "best": select_best(cells), "front": select_front(cells)}
    return ScoresDocument(**{**full, "cells": cells})


def alone(
    profile: float | None, values: dict[tuple[float | None, tuple[int, float]], float]
) -> ScoresDocument:
    kernel = {point: values[profile, point] for point in POINTS}
    return document(kernel, model_sha256=SHA256[profile], ema=True if profile is None else profile)


every_value = st.lists(st.floats(0.01, 1), min_size=len(CELLS), max_size=len(CELLS), unique=True).map(
    lambda values: dict(zip(CELLS, values, strict=True))
)


@given(every_value)
def test_slice_of_a_model_equals_a_sweep_of_that_model(values: dict) -> None:
    full = swept(values)
    for profile in PROFILES:
        assert document_values(model_scores(full, SHA256[profile])) == document_values(alone(profile, values))
    assert model_scores(full, "f" * 64) is None


@given(every_value)
def test_slice_of_the_best_model_contains_the_best_cell(values: dict) -> None:
    full = swept(values)
    part, best = best_model_scores(full), full.cells[full.best.cell]
    assert part.best.value == full.best.value == min(values.values())
    assert part.cells[part.best.cell].card["model_sha256"] == SHA256[best.ema]
    assert best_model_scores(part) is part


def test_models_of_different_ema_profiles_are_comparable() -> None:
    values = {cell: 0.1 + 0.01 * number for number, cell in enumerate(CELLS)}
    champion, candidate = alone(None, values), model_scores(swept(values), SHA256[0.2])
    assert candidate is not None
    assert not card_diff(candidate.cells["steps5-eta0"], champion.cells["steps5-eta0"])
    verdict = decide(candidate.cells, champion.cells, "version 1")
    assert not verdict.better
    assert "not comparable" not in verdict.reason
