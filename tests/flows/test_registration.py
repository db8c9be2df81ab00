"""An outdated champion is rescored by the current code before the gate compares."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion.choice.gate import CODE_VERSIONS
from diffusion.evaluate.features.reference_features import make_reference
from diffusion.evaluate.sweep_scores import evaluate
from diffusion.images.store import open_store
from diffusion.layout import CELL_RUNS, MODEL, MODEL_RUNS, PREPARED, REFERENCE, RUN, SAMPLES, SCORES
from diffusion.model.model_file import save_artefact
from diffusion.protocol.grid import grid
from diffusion.protocol.scores_document import ScoresDocument, read_scores, write_scores_document
from diffusion.sample.cell_images import make_cell
from diffusion.sample.network_files import NetworkFiles
from diffusion.system.checksums import add_checksum
from diffusion.system.devices import default_device
from diffusion.system.files import write_json
from diffusion.train.plan import plan_training
from diffusion.train.train_step import new_state
from flows.registration import promote_version, register_model
from tests.conftest import write_params
from tests.helpers.digits_sweep import make_config, write_prepared
from tests.helpers.mlflow_server import empty_database
from tracking.registry.champion_log import read_history
from tracking.registry.model_registry import register
from tracking.registry.model_versions import fetch_version_scores
from tracking.registry.promotion import Override
from tracking.store import connect

NAME = "diffctl-digits"
SWEEP = {"steps": [2, 3], "eta": [0.0]}
SEEDS, OUTPUTS = (1, 2, 3), ("models", "samples", "metrics")
OLD = {"torch": "1.0", "sampling_torch": "1.0", "evaluation": 0}
FEWER = {"reference_digest": "a", "reference_count": 10, "heldout_digest": "b", "heldout_count": 5}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Data and a reference, and the model, samples and scores of each seed in a folder of its own."""
    root = tmp_path_factory.mktemp("made")
    with contextlib.chdir(root):
        config, device = make_config(60, SWEEP), default_device()
        meta = open_store(write_prepared(PREPARED) / "train").meta
        make_reference(config.evaluate, PREPARED, REFERENCE)
        for seed in SEEDS:
            Path(f"seed{seed}").mkdir()
            plan = plan_training(make_config(60, SWEEP, train={"seed": seed}), meta, device)
            save_artefact(MODEL, new_state(plan, device).ema.state_dict(), plan)
            write_json(RUN, add_checksum({"key": f"key{seed}", "fingerprint": f"{seed}" * 16}))
            cells, files = grid(config.sample, config.sweep), NetworkFiles(MODEL)
            stores = {cell: make_cell(config.sample, cell, files, SAMPLES / cell.name) for cell in cells}
            scores = evaluate(stores, config.evaluate, REFERENCE, prepared=PREPARED)
            write_scores_document(SCORES, scores)
            for name in OUTPUTS:
                shutil.move(name, Path(f"seed{seed}", name))
    return root


@pytest.fixture
def make_scored(project, made) -> Callable[..., ScoresDocument]:
    """Write a model, its samples and scores into a project; the fields `card` replace those of the cards."""
    empty_database(project / "mlflow.db")
    write_params(project, sample={"num_images": 60}, sweep=SWEEP)
    shutil.copytree(made / "data", project / "data")

    def make(seed: int, **card) -> ScoresDocument:
        shutil.copytree(made / f"seed{seed}", project, dirs_exist_ok=True)
        document = read_scores(SCORES)
        for cell in document.cells.values():
            cell.card.update(card)
        write_scores_document(SCORES, document)
        return document

    return make


def versions() -> int:
    return len(connect().search_model_versions(f"name = '{NAME}'"))


def test_a_champion_of_older_code_is_rescored_once(make_scored, capsys):
    old = make_scored(1, **OLD)
    assert register().promoted
    make_scored(2)
    assert "not comparable" in register_model(Override(dry_run=True)).reason
    assert versions() == 1
    decision = register_model()
    assert "not comparable" not in decision.reason
    assert ", ".join(sorted(OLD)) in capsys.readouterr().out
    history = read_history(connect(), NAME)
    assert [event.after for event in history.events][:2] == [1, 2]
    rescored = fetch_version_scores(connect(), connect().get_model_version(NAME, "2"))
    assert rescored.best.value == pytest.approx(old.best.value, rel=1e-6)
    assert versions() == 3
    again = register_model()
    assert (again.version, again.champion, versions()) == (decision.version, decision.champion, 3)
    assert list(CELL_RUNS.iterdir())
    assert not list(MODEL_RUNS.glob(".rescored-*"))
    cards = [cell.card for cell in rescored.cells.values()]
    today = read_scores(SCORES).cells[old.best.cell].card
    assert all(card.get(field) == today.get(field) for card in cards for field in CODE_VERSIONS)


def test_a_champion_of_fewer_real_images_is_rescored(make_scored):
    make_scored(1, **FEWER)
    assert register().promoted
    make_scored(2)
    assert "not comparable" not in register_model().reason
    history = read_history(connect(), NAME)
    assert [(event.after, event.how) for event in history.events][:2] == [(1, "gate"), (2, "anew")]
    assert 1 not in history.holders, "a rollback does not go to the same weights"
    make_scored(3, **FEWER)
    assert "not comparable" in register_model().reason


def test_promoting_a_version_rescores_the_champion(make_scored):
    old = make_scored(1, **OLD)
    assert register().promoted
    make_scored(2)
    kept = register()  # registered by another machine, nothing rescored
    assert (kept.version, kept.champion) == (2, 1)
    assert "not comparable" in kept.reason
    decision = promote_version(NAME, 2)
    assert "not comparable" not in decision.reason
    assert [event.after for event in read_history(connect(), NAME).events][:2] == [1, 3]
    rescored = fetch_version_scores(connect(), connect().get_model_version(NAME, "3"))
    assert rescored.best.value == pytest.approx(old.best.value, rel=1e-6)
    assert promote_version(NAME, 2).champion == decision.champion
    assert versions() == 3


def test_a_champion_that_cannot_be_rescored_keeps_its_place_unless_forced(make_scored, capsys):
    make_scored(1, **OLD)
    register()
    make_scored(2, torch="2.0")  # no more of today's code than the champion
    decision = register_model()
    assert decision.champion == 1
    assert "not comparable with version 1" in decision.reason
    assert "version 1" in capsys.readouterr().out
    assert versions() == 2
    assert register_model(Override(force=True, note="x")).champion == 2
    assert capsys.readouterr().out == "", "nothing was rescored"
