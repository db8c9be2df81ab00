"""An outdated champion is rescored by the current code before the gate compares."""

from pathlib import Path

import pytest

from diffusion.choice.ranking import CODE_VERSIONS
from diffusion.evaluate.references import make_reference
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
from diffusion.train.initial_state import new_state
from diffusion.train.plan import plan_training
from flows.registration import promote_version, register_model
from tests.conftest import write_params
from tests.helpers.digits_sweep import make_config, write_prepared
from tests.helpers.mlflow_server import empty_database
from tracking.registry.champion_log import read_history
from tracking.registry.model_versions import fetch_version_scores
from tracking.registry.promotion import Override
from tracking.registry.registered_models import register
from tracking.store import connect

NAME = "diffctl-digits"
SWEEP = {"steps": [2, 3], "eta": [0.0]}
OLD = {"torch": "1.0", "sampling_torch": "1.0", "evaluation": 0}
FEWER = {"reference_digest": "a", "reference_count": 10, "heldout_digest": "b", "heldout_count": 5}

pytestmark = pytest.mark.slow


@pytest.fixture
def config(project):
    """A project with data, a reference and an empty MLflow store; its config."""
    empty_database(project / "mlflow.db")
    write_params(project, sample={"num_images": 60}, sweep=SWEEP)
    made = make_config(60, SWEEP)
    write_prepared(PREPARED)
    make_reference(made.evaluate, PREPARED, REFERENCE)
    return made


def make_scored(config, seed: int, **card) -> ScoresDocument:
    """Write a model, its samples and scores; the fields `card` replace those of the cards."""
    device = default_device()
    artefact = plan_training(
        make_config(60, SWEEP, train={"seed": seed}), open_store(PREPARED / "train").meta, device
    )
    save_artefact(MODEL, new_state(artefact, device).ema.state_dict(), artefact)
    write_json(RUN, add_checksum({"key": f"key{seed}", "fingerprint": f"{seed}" * 16}))
    cells = grid(config.sample, config.sweep)
    stores = {
        cell: make_cell(config.sample, cell, NetworkFiles(MODEL), SAMPLES / cell.name) for cell in cells
    }
    document = evaluate(stores, config.evaluate, REFERENCE, prepared=PREPARED)
    for cell in document.cells.values():
        cell.card.update(card)
    write_scores_document(SCORES, document)
    return document


def versions() -> int:
    return len(connect().search_model_versions(f"name = '{NAME}'"))


def test_a_champion_of_older_code_is_rescored_once(config, capsys):
    old = make_scored(config, 1, **OLD)
    assert register().promoted
    make_scored(config, 2)
    decision = register_model()
    assert "not comparable" not in decision.reason
    assert ", ".join(sorted(OLD)) in capsys.readouterr().err
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


def test_a_champion_of_fewer_real_images_is_rescored(config):
    make_scored(config, 1, **FEWER)
    assert register().promoted
    make_scored(config, 2)
    assert "not comparable" not in register_model().reason
    history = read_history(connect(), NAME)
    assert [(event.after, event.how) for event in history.events][:2] == [(1, "gate"), (2, "anew")]
    assert 1 not in history.holders, "a rollback does not go to the same weights"
    make_scored(config, 3, **FEWER)
    assert "not comparable" in register_model().reason


def test_promoting_a_version_rescores_the_champion(config):
    old = make_scored(config, 1, **OLD)
    assert register().promoted
    make_scored(config, 2)
    kept = register()  # registered by another machine, nothing rescored
    assert (kept.version, kept.champion) == (2, 1)
    assert "not comparable" in kept.reason
    assert "not comparable" in promote_version(NAME, 2, Override(dry_run=True)).reason
    assert versions() == 2
    decision = promote_version(NAME, 2)
    assert "not comparable" not in decision.reason
    assert [event.after for event in read_history(connect(), NAME).events][:2] == [1, 3]
    rescored = fetch_version_scores(connect(), connect().get_model_version(NAME, "3"))
    assert rescored.best.value == pytest.approx(old.best.value, rel=1e-6)
    assert promote_version(NAME, 2).champion == decision.champion
    assert versions() == 3


def test_a_champion_that_cannot_be_rescored_keeps_its_place(config, capsys):
    make_scored(config, 1, **OLD)
    register()
    make_scored(config, 2, torch="2.0")  # no more of today's code than the champion
    decision = register_model()
    assert decision.champion == 1
    assert "not comparable with version 1" in decision.reason
    assert "version 1" in capsys.readouterr().err
    assert versions() == 2
    run_id = connect().get_model_version(NAME, "1").run_id
    (stored,) = Path().glob(f"mlartifacts/*/{run_id}/**/registered/*/artifacts/scores.json")
    stored.write_text("{}")
    assert "the champion cannot be compared" in register_model().reason
    assert "could not be rescored" in capsys.readouterr().err


def test_a_champion_that_fits_no_memory_keeps_no_model_from_the_registry(config, capsys, monkeypatch):
    def fail(*_) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    make_scored(config, 1, **OLD)
    register()
    make_scored(config, 2)
    monkeypatch.setattr("diffusion.sample.cell_images.make_cell", fail)
    assert "not comparable with version 1" in register_model().reason
    assert "could not be rescored: RuntimeError: DefaultCPU" in capsys.readouterr().err


def test_force_rescores_nothing(config):
    make_scored(config, 1, **OLD)
    register()
    make_scored(config, 2)
    assert register_model(Override(force=True, note="x")).champion == 2
