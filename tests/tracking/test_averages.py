"""A sweep over averages in MLflow: the best one's file is registered, with the cells that are of it."""

import pytest

from diffusion.choice.chosen import chosen_best, chosen_front
from diffusion.layout import AVERAGES, MODEL, SCORES
from diffusion.model.model_file import read_artefact, read_weights, save_artefact
from diffusion.model.snapshots import snapshot_file
from diffusion.protocol.grid import Cell
from diffusion.protocol.scores import CellScores, ScoresDocument, as_values, read_scores, write_document
from diffusion.sample.averages import average_file, snapshots_of
from diffusion.system.errors import DiffctlError, UsageError
from tests.helpers.scores_document import document
from tracking import names
from tracking.promotion import Hand
from tracking.registry import fetch_champion, fetch_champion_scores, register
from tracking.runs import fetch_model, fetch_scores
from tracking.store import connect

pytestmark = pytest.mark.usefixtures("here")
NAME = "diffctl-digits"
WIDTHS = (0.07, 0.2)
POINTS = ((5, 0.0), (10, 0.0))
KEPT = {"averages": {"widths": [0.05], "every": 4}}
Values = dict[float | None, float]


@pytest.fixture
def make_swept(make_model):
    """Write a model of a seed, its snapshots, and the scores of its sweep over averages.

    `values` are the kernel distances in 5 steps by the average; in 10 they are half of it.
    """

    def make(seed: int, values: Values) -> ScoresDocument:
        make_model(seed, train=KEPT)
        own = read_artefact(MODEL)
        weights = read_weights(MODEL, own)
        for step in {max(1, own.step // 2), own.step}:
            moved = {name: tensor + 0.01 / step for name, tensor in weights.items()}
            said = own.model_copy(update={"step": step, "ema_width": 0.05})
            save_artefact(snapshot_file(AVERAGES, 0.05, step), moved, said)
        write_document(SCORES, swept(values))
        return read_scores(SCORES)

    return make


def file_of(width: float | None):
    return MODEL if width is None else average_file(snapshots_of(MODEL), width)


def swept(values: Values) -> ScoresDocument:
    """The scores of models/ and of its averages, each with the cards of its own model."""
    cells = {}
    for width, value in values.items():
        ema, sha256 = width or True, read_artefact(file_of(width)).model_sha256
        part = document({(5, 0.0): value, (10, 0.0): value / 2}, model_sha256=sha256, ema=ema)
        for cell in part.cells.values():
            axis = {} if width is None else {"ema": width}
            cells[Cell(**cell.axes, **axis).name] = CellScores(**as_values(cell), **axis)
    whole = {**as_values(document()), "training": read_artefact(MODEL).training}
    return ScoresDocument(
        **{**whole, "cells": cells, "best": chosen_best(cells), "front": chosen_front(cells)}
    )


@pytest.mark.slow
def test_the_best_averages_file_is_registered_with_its_own_cells(make_swept):
    whole = make_swept(1, {None: 0.3, 0.07: 0.2, 0.2: 0.4})
    assert register().promoted
    version = connect().get_model_version(NAME, "1")
    assert version.tags[names.EMA_WIDTH] == "0.07"
    assert "the power-function average of width σ_rel = 0.07" in version.description
    assert fetch_champion(NAME).read_bytes() == file_of(0.07).read_bytes()
    scores = fetch_champion_scores(NAME)
    assert scores.cells.keys() == {"steps5-eta0", "steps10-eta0"}
    assert scores.best.value == whole.best.value
    own = read_artefact(file_of(0.07))
    assert scores.training is not None
    assert scores.training.model_dump() == own.training
    assert version.tags[names.SETTING] == own.training["setting"]
    run = connect().get_run(version.run_id)
    assert run.data.metrics["best/ema"] == 0.07
    assert fetch_scores(run).cells.keys() == whole.cells.keys(), "the run has all"
    assert fetch_model(version.run_id).read_bytes() == file_of(0.07).read_bytes()
    again = register()
    assert (again.version, "already" in str(again)) == (1, True)


def test_models_of_averages_and_others_compete_for_one_title(make_swept):
    make_swept(1, {None: 0.2, 0.07: 0.3})
    first = register()
    assert fetch_champion(NAME).read_bytes() == MODEL.read_bytes()
    assert names.EMA_WIDTH not in connect().get_model_version(NAME, "1").tags
    make_swept(2, {None: 0.4, 0.2: 0.1})
    foreseen = register(hand=Hand(dry_run=True))
    second = register()
    assert (first.champion, foreseen.promoted or second.promoted, second.champion) == (1, True, 2)
    assert fetch_champion(NAME).read_bytes() == file_of(0.2).read_bytes()
    make_swept(3, {0.07: 0.3})
    third = register()
    assert (third.version, third.champion) == (3, 2)
    assert "not comparable" not in third.reason


def test_stale_scores_and_snapshots_are_refused(make_swept, make_model):
    make_swept(1, {None: 0.3, 0.07: 0.2})
    card = read_artefact(file_of(0.07))
    moved = {name: tensor + 1 for name, tensor in read_weights(file_of(0.07), card).items()}
    last = snapshots_of(MODEL).last
    save_artefact(snapshot_file(AVERAGES, 0.05, last.step), moved, last)
    with pytest.raises(DiffctlError, match=r"is of another model than models/unet\.safetensors"):
        register()
    stale = read_scores(SCORES)
    make_model(2)  # of another training, whose snapshots nobody has
    write_document(SCORES, stale)
    with pytest.raises(UsageError, match="snapshots of another training"):
        register()
    assert not connect().search_model_versions(f"name = '{NAME}'")
