"""The Pareto front, the effect of selection on a score, and the summary of a sweep."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.choice.confidence import errors_of
from diffusion.choice.selection import (
    describe_disagreement,
    describe_optimism,
    describe_selection,
    optimism,
    pareto_front,
    recommended,
    select,
    select_best,
    select_front,
    write_summary,
)
from diffusion.protocol.scores import CellScores
from diffusion.protocol.scores_document import SelectedCell
from diffusion.protocol.settings import SampleSettings
from tests.helpers.scores_document import certain_cell, document, with_errors


def cells_of(points):
    """Return cells with these (steps, guidance, distance)."""
    return {
        str(number): CellScores(
            steps=steps,
            eta=0.0,
            scores={"fid": distance, "kid": distance},
            card={
                "nfe": SampleSettings(steps=steps, guidance=guidance).nfe,
                "extractor": "inception-v3-compat",
                "num_images": 10,
                "data": "digits",
            },
        )
        for number, (steps, guidance, distance) in enumerate(points)
    }


POINTS = st.lists(
    st.tuples(st.integers(1, 50), st.sampled_from([0.0, 1.5]), st.integers(0, 20).map(float)), min_size=1
)


def test_front_contains_only_undominated_cells():
    cells = cells_of([(5, 0.0, 9.0), (10, 0.0, 9.0), (10, 1.5, 4.0), (20, 0.0, 5.0), (50, 0.0, 6.0)])
    assert [(choice.cell, choice.nfe) for choice in pareto_front(cells)] == [("0", 5), ("2", 20)]


@given(POINTS, st.integers(1, 100))
def test_recommended_cell_is_the_best_within_the_budget(points, budget):
    cells = cells_of(points)
    affordable = {name: cell for name, cell in cells.items() if cell.nfe <= budget}
    choice = recommended(cells, budget)
    if not affordable:
        assert choice is None
        return
    best = min(cell.scores["fid"] for cell in affordable.values())
    assert choice.distance == best
    equal = [cell for cell in affordable.values() if cell.scores["fid"] == best]
    assert choice.nfe == min(cell.nfe for cell in equal)


@given(POINTS)
def test_distance_decreases_with_nfe_along_the_front(points):
    front = pareto_front(cells_of(points))
    assert front
    for before, after in pairwise(front):
        assert before.nfe < after.nfe
        assert before.distance > after.distance


KD = "kd_effnet_lite0_64"
CELLS = 8


def sweep(values, errors, **card):
    steps = range(1, len(values) + 1)
    return [
        certain_cell(KD, value, errors=own, steps=step, eta=0.0, nfe=step, **card)
        for value, own, step in zip(values, errors, steps, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("truth", "share"), [(np.zeros(CELLS), 0.0), (np.zeros(CELLS), 0.8), (np.linspace(0, 2, CELLS), 0.0)]
)
def test_optimism_is_the_mean_bias_of_the_minimum(truth, share):
    """Select the minimum in 60 sweeps of cells with equal or similar true scores."""
    draw = np.random.default_rng(0)
    roots = np.linalg.cholesky(share * np.ones((CELLS, CELLS)) + (1 - share) * np.eye(CELLS))
    # The inner products of the errors are the covariances.
    errors = roots @ np.linalg.qr(draw.normal(size=(100, CELLS)))[0].T
    found, expected = [], []
    for _ in range(60):
        values = truth + roots @ draw.normal(size=CELLS)
        expected.append((truth - values)[values.argmin()])
        found.append(optimism(sweep(values, errors), KD))
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=3 * np.std(expected) / np.sqrt(60))
    assert np.mean(found) > 0.7 * np.mean(expected)


def test_optimism_is_zero_for_distant_cells():
    errors = np.random.default_rng(0).normal(size=(3, 100)) / 10
    assert optimism(sweep([0, 20, 40], errors), KD) == pytest.approx(0, abs=0.1)
    assert optimism(sweep([0], errors[:1]), KD) == 0


def test_optimism_is_none_without_errors():
    assert (
        optimism([certain_cell(KD, 1.0, steps=1, eta=0.0), certain_cell(KD, 2.0, steps=2, eta=0.0)], KD)
        is None
    )
    entry = document().best
    assert entry == SelectedCell(cell="steps10-eta0", metric=KD, value=0.2, of=4, optimism=None)
    assert describe_selection(entry) == f"{KD} 0.2 at steps10-eta0"


def test_best_cell_and_front_contain_their_optimism():
    errors = np.random.default_rng(0).normal(size=(3, 100)) / 10
    cells = {str(index): one for index, one in enumerate(sweep([0.3, 0.2, 0.4], errors))}
    for one in cells.values():
        with_errors(one, "fd_effnet_lite0_64", errors_of(one, KD)[:100])
        one.scores["fd_effnet_lite0_64"] = one.scores[KD]
    best, front = select_best(cells), select_front(cells)
    assert best.optimism == optimism(list(cells.values()), KD)
    assert 0.2 < best.optimism < 2
    assert describe_optimism(best).startswith("roughly ")
    assert describe_selection(best).endswith("too low, as the least of 3")
    assert [entry.of for entry in front] == [1, 2]
    assert front[0].optimism == 0
    assert describe_optimism(front[0]) == ""


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ([3.0, 2.0, 1.0], "fd_effnet_lite0_64 prefers steps3-eta0 to steps1-eta0"),
        ([3.0, 2.0, 2.9], "fd_effnet_lite0_64 prefers steps2-eta0 to steps1-eta0"),
        ([1.05, 2.0, 1.0], "fd_effnet_lite0_64 prefers steps3-eta0 to steps1-eta0, within chance"),
        ([1.0, 2.0, 3.0], ""),
    ],
)
def test_disagreement_of_kernel_and_frechet_distance_is_described(distances, expected):
    errors = np.random.default_rng(0).normal(size=(3, 100)) / 100
    made = document({(1, 0.0): 0.1, (2, 0.0): 0.2, (3, 0.0): 0.3})
    cells = {name: cell.model_copy(deep=True) for name, cell in made.cells.items()}
    for cell, distance, own in zip(cells.values(), distances, errors, strict=True):
        cell.scores["fd_effnet_lite0_64"] = distance
        with_errors(cell, "fd_effnet_lite0_64", own)
    assert (
        describe_disagreement(select(cells, extractor=made.extractor, reference=made.reference)) == expected
    )


def test_summary_contains_the_best_cell(tmp_path):
    path = tmp_path / "summary.json"
    write_summary(path, document())
    assert json.loads(path.read_text()) == {
        "best": {
            "steps": 10,
            "eta": 0.0,
            "nfe": 10,
            "fd_effnet_lite0_64": 200.0,
            "kd_effnet_lite0_64": 0.2,
            "is_effnet_lite0_64": 2.0,
            "floor": 25.0,
            "excess": 175.0,
        },
        "num_images": 500,
        "cells": 4,
    }
