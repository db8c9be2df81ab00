"""Registering the best of several EMA profiles: its own file, with the cells of that model alone."""

import pytest

from diffusion.choice.selection import select_best, select_front
from diffusion.layout import AVERAGES, MODEL, SCORES
from diffusion.model.model_file import read_artefact, read_weights, save_artefact
from diffusion.model.posthoc_ema import snapshot_path
from diffusion.protocol.grid import Cell
from diffusion.protocol.scores_document import (
    CellScores,
    ScoresDocument,
    document_values,
    read_scores,
    write_scores_document,
)
from diffusion.sample.ema_files import ema_model_file, matching_snapshots
from diffusion.system.errors import DiffctlError, UsageError
from tests.helpers.scores_document import document
from tracking import keys
from tracking.registry.promotion import Override
from tracking.registry.registered_models import fetch_scores_of, fetch_version_files, register
from tracking.runs.scored_runs import fetch_model, fetch_scores
from tracking.store import connect

pytestmark = pytest.mark.usefixtures("here")
NAME = "diffctl-digits"
Values = dict[float | None, float]


def file_of(width: float | None):
    return MODEL if width is None else ema_model_file(matching_snapshots(MODEL), width)


@pytest.fixture
def make_swept(make_model):
    """A function that writes a model, its snapshots, and the scores of a sweep over EMA profiles.

    `values` are the kernel distances for 5 steps by profile; those for 10 steps are half as large.
    """

    def make(seed: int, values: Values) -> ScoresDocument:
        make_model(seed, train={"ema_profiles": {"sigma_rel": [0.05], "every": 4}})
        own = read_artefact(MODEL)
        weights = read_weights(MODEL, own)
        for step in {max(1, own.step // 2), own.step}:
            changed = {name: tensor + 0.01 / step for name, tensor in weights.items()}
            update = {"step": step, "ema_sigma_rel": 0.05}
            save_artefact(snapshot_path(AVERAGES, 0.05, step), changed, own.model_copy(update=update))
        cells = {}
        for width, value in values.items():
            card = {"ema": width or True, "model_sha256": read_artefact(file_of(width)).model_sha256}
            axis = {} if width is None else {"ema": width}
            for cell in document({(5, 0.0): value, (10, 0.0): value / 2}, **card).cells.values():
                cells[Cell(**cell.axes, **axis).name] = CellScores(**document_values(cell), **axis)
        found = {"cells": cells, "best": select_best(cells), "front": select_front(cells)}
        made = ScoresDocument(**{**document_values(document()), **found, "training": own.training})
        write_scores_document(SCORES, made)
        return made

    return make


@pytest.mark.slow
def test_best_profile_is_registered_with_its_own_cells(make_swept):
    document = make_swept(1, {None: 0.3, 0.07: 0.2, 0.2: 0.4})
    assert register().promoted
    version = connect().get_model_version(NAME, "1")
    assert version.tags[keys.EMA_SIGMA_REL] == "0.07"
    assert "σ_rel = 0.07" in version.description
    assert fetch_version_files(NAME).files.model.read_bytes() == file_of(0.07).read_bytes()
    scores, own = fetch_scores_of(NAME), read_artefact(file_of(0.07))
    assert scores.cells.keys() == {"steps5-eta0", "steps10-eta0"}
    assert scores.best.value == document.best.value
    assert scores.training is not None
    assert scores.training.model_dump() == own.training
    assert version.tags[keys.SETTING] == own.training["setting"]
    run = connect().get_run(version.run_id)
    assert run.data.metrics["best/ema"] == 0.07
    assert fetch_scores(run).cells.keys() == document.cells.keys(), "the run has the scores of all profiles"
    assert fetch_model(version.run_id).read_bytes() == file_of(0.07).read_bytes()
    assert register().version == 1


@pytest.mark.slow
def test_profiles_and_plain_models_compete_for_one_champion(make_swept):
    make_swept(1, {None: 0.2, 0.07: 0.3})
    first = register()
    assert fetch_version_files(NAME).files.model.read_bytes() == MODEL.read_bytes()
    assert keys.EMA_SIGMA_REL not in connect().get_model_version(NAME, "1").tags
    make_swept(2, {None: 0.4, 0.2: 0.1})
    foreseen, second = register(override=Override(dry_run=True)), register()
    assert (first.champion, foreseen.passed, second.champion) == (1, True, 2)
    assert fetch_version_files(NAME).files.model.read_bytes() == file_of(0.2).read_bytes()
    make_swept(3, {0.07: 0.3})
    third = register()
    assert (third.version, third.champion) == (3, 2)
    assert "not comparable" not in third.reason


def test_stale_scores_and_snapshots_are_refused(make_swept, make_model):
    make_swept(1, {None: 0.3, 0.07: 0.2})
    card, last = read_artefact(file_of(0.07)), matching_snapshots(MODEL).last
    changed = {name: tensor + 1 for name, tensor in read_weights(file_of(0.07), card).items()}
    save_artefact(snapshot_path(AVERAGES, 0.05, last.step), changed, last)
    with pytest.raises(DiffctlError, match="another model"):
        register()
    stale = read_scores(SCORES)
    make_model(2)  # another training, without snapshots
    write_scores_document(SCORES, stale)
    with pytest.raises(UsageError, match="another training"):
        register()
    assert not connect().search_model_versions(f"name = '{NAME}'")
