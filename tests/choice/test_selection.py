"""Selection from a sweep: the front, the bias of the best score, the summary, and the part of one model."""

import json
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.actions.scores.score_tables import show_sweep_scores
from diffusion.choice.confidence import card_diff, errors_of
from diffusion.choice.ranking import decide
from diffusion.choice.selection import (
    best_model_scores,
    describe_disagreement,
    describe_optimism,
    describe_selection,
    model_scores,
    optimism,
    select,
    select_best,
    select_front,
    write_summary,
)
from diffusion.protocol.resolution import recommended, resolve_settings
from diffusion.protocol.scores_document import CellScores, ScoresDocument, SelectedCell, document_values
from diffusion.protocol.settings import SampleSettings
from diffusion.report.score_tables import best_cell
from flows.run_summary import sweep_markdown
from tests.helpers.scores_document import certain_cell, document, with_errors


def cells_of(points):
    """Return cells with these (steps, guidance, distance)."""
    shared = {"extractor": "inception-v3-compat", "num_images": 10, "data": "digits"}
    cells = {}
    for number, (steps, guidance, distance) in enumerate(points):
        card = {"nfe": SampleSettings(steps=steps, guidance=guidance).nfe, **shared}
        scores = {"fid": 20 - distance, "kid": distance}
        cells[str(number)] = CellScores(steps=steps, eta=0.0, scores=scores, card=card)
    return cells


POINTS = st.lists(
    st.tuples(st.integers(1, 50), st.sampled_from([0.0, 1.5]), st.integers(0, 20).map(float)), min_size=1
)


@given(POINTS, st.integers(1, 100))
def test_recommended_cell_is_the_best_within_the_budget(points, budget):
    cells = cells_of(points)
    front = select_front(cells)
    for before, after in pairwise(front):
        assert before.nfe < after.nfe
        assert before.value > after.value
    choice = recommended(ScoresDocument.model_construct(front=front, cells=cells), budget)
    affordable = [(cell.scores["kid"], cell.nfe) for cell in cells.values() if cell.nfe <= budget]
    assert (choice and (choice.value, choice.nfe)) == min(affordable, default=None)
    assert front[-1].value == select_best(cells).value, "one rule selects both"


KD = "kd_effnet_lite0_64"
CELLS = 8


def sweep(values, errors, **card):
    pairs = enumerate(zip(values, errors, strict=True), 1)
    return [certain_cell(KD, value, own, steps=step, eta=0.0, **card) for step, (value, own) in pairs]


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


def test_optimism_is_zero_for_distant_cells_and_none_without_errors():
    errors = np.random.default_rng(0).normal(size=(3, 100)) / 10
    assert optimism(sweep([0, 20, 40], errors), KD) == pytest.approx(0, abs=0.1)
    assert optimism(sweep([0], errors[:1]), KD) == 0
    assert optimism(sweep([1.0, 2.0], [None, None]), KD) is None
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
def test_disagreement_of_kernel_and_frechet_distance_is_described(distances, expected, capsys, tmp_path):
    errors = np.random.default_rng(0).normal(size=(3, 100)) / 100
    made = document({(1, 0.0): 0.1, (2, 0.0): 0.2, (3, 0.0): 0.3})
    cells = {name: cell.model_copy(deep=True) for name, cell in made.cells.items()}
    for cell, distance, own in zip(cells.values(), distances, errors, strict=True):
        cell.scores["fd_effnet_lite0_64"] = distance
        with_errors(cell, "fd_effnet_lite0_64", own)
    found = select(cells, extractor=made.extractor, reference=made.reference)
    assert describe_disagreement(found) == best_cell(found)["disagreement"] == expected
    show_sweep_scores(found)
    for shown in (capsys.readouterr().out, sweep_markdown(found, tmp_path, iter(()))):
        assert [line for line in shown.splitlines() if "prefers" in line] == [expected] * bool(expected)


def test_summary_contains_the_best_cell(tmp_path):
    write_summary(tmp_path / "summary.json", document())
    names = ("fd_effnet_lite0_64", "kd_effnet_lite0_64", "is_effnet_lite0_64", "floor", "excess")
    scores = dict(zip(names, (200.0, 0.2, 2.0, 25.0, 175.0), strict=True))
    best = {"steps": 10, "eta": 0.0, "nfe": 10, **scores}
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found == {"best": best, "num_images": 500, "cells": 4}


# Slices of a sweep over EMA profiles: the cells of one model, as in a sweep of that model.

Values = dict[tuple[float | None, tuple[int, float]], float]
PROFILES = (None, 0.05, 0.2)
SHA256 = {profile: f"{number}" * 64 for number, profile in enumerate(PROFILES)}
AXES = ((5, 0.0), (5, 1.0), (10, 0.0))
ALL_CELLS = [*product(PROFILES, AXES)]


def swept(values: Values) -> ScoresDocument:
    """Return a document of a sweep over EMA profiles (one model each) with these kernel distances."""
    cells = [
        CellScores(**{**document_values(cell), "ema": profile})
        for profile in PROFILES
        for cell in alone(profile, values).cells.values()
    ]
    full = alone(None, values)
    return select({cell.name: cell for cell in cells}, extractor=full.extractor, reference=full.reference)


def alone(profile: float | None, values: Values) -> ScoresDocument:
    kernel = {point: values[profile, point] for point in AXES}
    return document(kernel, model_sha256=SHA256[profile], ema=True if profile is None else profile)


every_value = st.lists(st.floats(0.01, 1), min_size=len(ALL_CELLS), max_size=len(ALL_CELLS), unique=True).map(
    lambda values: dict(zip(ALL_CELLS, values, strict=True))
)


@given(every_value)
def test_slice_of_a_model_equals_a_sweep_of_that_model(values: dict) -> None:
    full = swept(values)
    for profile in PROFILES:
        assert document_values(model_scores(full, SHA256[profile])) == document_values(alone(profile, values))
    assert model_scores(full, "f" * 64) is None
    part, best = best_model_scores(full), full.cells[full.best.cell]
    assert part.best.value == full.best.value == min(values.values())
    assert part.cells[part.best.cell].card["model_sha256"] == SHA256[best.ema]
    assert best_model_scores(part) is part


def test_models_of_different_ema_profiles_are_comparable() -> None:
    values = {cell: 0.1 + 0.01 * number for number, cell in enumerate(ALL_CELLS)}
    champion, candidate = alone(None, values), model_scores(swept(values), SHA256[0.2])
    assert candidate is not None
    assert not card_diff(candidate.cells["steps5-eta0"], champion.cells["steps5-eta0"])
    verdict = decide(candidate.cells, champion.cells, "version 1")
    assert not verdict.better
    assert "not comparable" not in verdict.reason


@pytest.mark.parametrize(
    ("chosen", "changes"),
    [
        ({}, {}),
        ({"eta": 0.0}, {"eta": 0.0}),
        ({"timesteps": (0, 500, 999)}, {"timesteps": (0, 500, 999), "steps": 3}),
        ({"steps": 1}, {"steps": 1, "eta": 0.0}),
        ({"timesteps": (999,)}, {"timesteps": (999,), "steps": 1, "eta": 0.0}),
        ({"spacing": "log-snr"}, {"spacing": "log-snr", "spacing_options": {}}),
        ({"sampler": "unipc"}, {"sampler": "unipc"}),
    ],
)
def test_a_chosen_option_drops_settings_of_the_best_cell_that_belong_to_another_value(chosen, changes):
    card = {"spacing": "karras", "spacing_options": '{"rho": 5.0}'}
    scores = document({(10, 1.0): 0.1, (50, 0.0): 0.2}, **card)
    best = {"steps": 10, "eta": 1.0, "spacing": "karras", "spacing_options": {"rho": 5.0}}
    wanted = SampleSettings(**({} if "sampler" in chosen else best) | changes)
    assert resolve_settings("linear", chosen, scores).settings == wanted


@pytest.mark.parametrize(
    ("chosen", "changes"),
    [
        ({}, {"clip": False}),
        ({"guidance": 0.5}, {"guidance": 0.5, "clip": False}),
        ({"guidance": 0.0}, {"guidance": 0.0, "guidance_rule": None, "guidance_rule_options": {}}),
        ({"guidance_rule": "apg"}, {"guidance_rule": "apg", "guidance_rule_options": {}}),
        ({"guidance_rule": "classifier-free"}, {"guidance_rule": None, "guidance_rule_options": {}}),
    ],
)
def test_another_guidance_rule_drops_the_options_and_the_clip_of_that_of_the_best_cell(chosen, changes):
    rule = {"guidance": 1.0, "guidance_rule": "cfg-zero", "guidance_rule_options": {"zero_calls": 2}}
    card = rule | {"guidance_rule_options": '{"zero_calls": 2}', "clip": False}
    scores = document({(10, 0.0): 0.1}, **card)
    wanted = SampleSettings(steps=10, **rule | changes)
    assert resolve_settings("linear", chosen, scores).settings == wanted


@pytest.mark.parametrize("evaluated", [False, True])
def test_settings_that_no_cell_has_are_those_of_the_process(evaluated):
    scores = document({(10, 0.0): 0.1}, spacing="karras") if evaluated else None
    chosen = {"sampler": "unipc"}  # the times of the best cell are of its own sampler
    for schedule, wanted in [("linear", "uniform"), ("flow", "uniform"), ("edm", "karras")]:
        assert resolve_settings(schedule, chosen, scores).settings.spacing == wanted
    assert resolve_settings("edm", {"spacing": "uniform"}, scores).settings


def test_a_chosen_eta_drops_the_single_step_of_the_best_cell():
    chosen = {"eta": 1.0}
    settings = resolve_settings("linear", chosen, document({(1, 0.0): 0.1})).settings
    assert settings == SampleSettings(eta=1.0)


@pytest.mark.parametrize(("rule", "kept"), [("apg", (0.5, "apg")), ("cfg++", (0.0, None))])
def test_another_sampler_keeps_all_of_the_best_cell_but_steps_times_and_noise(rule, kept):
    base = '{"file":"base.safetensors"}'
    card = {"guidance": 0.5, "guidance_rule": rule, "classes": "data", "base": base, "clip": False}
    card |= {"spacing": "karras", "spacing_options": '{"rho": 5.0}', "noise": "large"}
    chosen = {"sampler": "unipc"}
    found = resolve_settings("linear", chosen, document({(10, 1.0): 0.1}, **card)).settings
    assert (found.steps, found.eta, found.spacing, found.spacing_options) == (50, 0.0, "uniform", {})
    assert (found.guidance, found.guidance_rule) == kept
    assert (found.classes, found.clip) == ("data", False)
    assert found.base is not None
