"""`diffctl prune`: which files are removed, which stay, and that nothing goes without --yes."""

import itertools
import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffusion.check.findings import Project
from diffusion.config import load
from diffusion.images.store import open_store
from diffusion.layout import (
    AVERAGES,
    CELL_RUNS,
    CLASSIFIER_RUNS,
    MODEL,
    MODEL_RUNS,
    PREPARED,
    SEARCH_RUNS,
    TRAIN_RUNS,
)
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.model.posthoc_ema import snapshot_path
from diffusion.protocol.grid import cell_settings, grid
from diffusion.sample import cell_images
from diffusion.sample.ema_files import ema_model_file, matching_snapshots
from diffusion.sample.network_files import NetworkFiles
from diffusion.sample.sampling_card import cells_folder, shards_folder
from diffusion.system.checksums import add_checksum
from diffusion.system.devices import default_device
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_json, write_text
from diffusion.system.locks import file_lock, group_lock
from diffusion.train.checkpoint.run_dir import run_dir_of
from diffusion.train.checkpoint.state_files import SavedState, StateValues, save_state
from diffusion.train.optimizers.lr_schedule import ConstantLR
from diffusion.train.plan import plan_artefact, plan_training, training_fingerprint, training_settings
from diffusion.trials.trial_runs import ABOUT, About, open_about
from flows.run_lock import LOCK
from flows.sweep_cells import run_sweep
from tests.conftest import write_params
from tests.helpers.invoke import assert_refused
from tests.helpers.mlflow_server import empty_database
from tests.helpers.networks import network_of
from tests.helpers.prepared import copy_data
from tracking import keys
from tracking.experiments import ensure_experiment
from tracking.runs.leftovers import find_leftovers, remove_leftovers
from tracking.spool.delivery import deliver
from tracking.spool.event_log import Spool
from tracking.store import connect, tracking_uri

CLASSIFIER = {"steps": 2, "batch_size": 4, "lr": 0.001}


@pytest.fixture
def plan(project: Path):
    """A project with prepared data, an MLflow store, and what its training would give."""
    copy_data(project)
    empty_database(project / "mlflow.db")
    return plan_training(load(), open_store(PREPARED / "train").meta, default_device())


def make_training(name: str, key: str, delivered: bool = True) -> Path:
    folder = TRAIN_RUNS / name
    folder.mkdir(parents=True)
    write_text(folder / "state-000000007.sealed", "weights")
    spool = Spool(folder, key, f"digits-{name}", "diffctl-digits")
    spool.metrics(7, {"loss": 1.0})
    spool.close("FINISHED")
    if delivered:
        deliver(folder, tracking_uri())
    return folder


def save(folder: Path, settings, step: int, **values) -> None:
    """Make the training in the folder one to resume from."""
    write_json(folder / "config.json", add_checksum(training_settings(settings)))
    write_json(folder / "run.json", add_checksum({"key": folder.name}))
    save_state(folder, SavedState({"w": torch.ones(1)}, StateValues(step=step, **values)))


def make_units(folder: Path) -> Path:
    write_text(folder / "00000000-00000004.npy", "images")
    return folder


def gone(plan, *keep: str) -> set[Path]:
    return {leftover.path for leftover in find_leftovers(load(), [plan], keep)}


@pytest.mark.slow
def test_trainings_of_other_settings_go_unless_needed(plan) -> None:
    make_training(training_fingerprint(plan), "own")
    other, named = make_training("other", "other"), make_training("named", "named")
    make_training("undelivered", "undelivered", delivered=False)
    running = make_training("running", "running")
    with file_lock(running / "lock", timeout=0):
        assert gone(plan) == {other, named}
        assert gone(plan, "digits-named") == {other}
    assert gone(plan) == {other, named, running}
    with pytest.raises(UsageError, match="'unknown'"):
        gone(plan, "unknown")


def test_state_that_a_longer_training_resumes_from_stays(plan) -> None:
    constant = {"lr": ConstantLR(rate=0.002)}
    trains = (plan.train.model_copy(update={**constant, "steps": steps}) for steps in (12, 8))
    longer, short = (plan.model_copy(update={"train": train}) for train in trains)
    folder = make_training(training_fingerprint(short), "short")
    save(folder, short, 7, code=list(plan.code))
    assert gone(plan) == {folder}, "its learning rates differ"
    assert gone(longer) == set()


def test_trials_stay_while_the_folder_of_their_search_exists(plan) -> None:
    base = MODEL_RUNS / ("e" * 64)
    write_text(base / "model.safetensors", "weights")
    bases = {"champion small": base.name}
    searches = [
        open_about(SEARCH_RUNS / name, About(key=name, settings={}, search={}, bases=bases))
        for name in ("first", "second")
    ]
    shared, single = make_training("shared", "shared"), make_training("single", "single")
    for folder, of in ((shared, searches), (single, searches[1:])):
        spool = Spool(folder, folder.name, folder.name, "diffctl-digits")
        for search in of:  # the second replaces the first: a training may be a trial of two searches
            spool.tags({keys.SEARCH: "trials", keys.SEARCH_KEY: search.key})
        spool.close("FINISHED")
        deliver(folder, tracking_uri())
    assert gone(plan) == set()
    shutil.rmtree(Path(SEARCH_RUNS, "second"))
    assert gone(plan) == {single}
    write_text(Path(SEARCH_RUNS, "first") / ABOUT, "damaged")
    with pytest.raises(DiffctlError, match=r"search\.json"):
        gone(plan)
    shutil.rmtree(Path(SEARCH_RUNS, "first"))
    assert gone(plan) == {shared, single, base}


def test_newest_state_that_keep_resumes_from_stays(plan) -> None:
    kept, older, other = (make_training(name, name) for name in ("kept", "older", "other"))
    for at, folder in enumerate((older, kept)):
        save(folder, plan, 3)
        os.utime(folder / "run.json", (at, at))
    assert gone(plan) == {older, other}
    for step, found in ((1, set()), (9, {kept})):  # --keep resumes from a state that is further
        state = SavedState({"w": torch.ones(1)}, StateValues(step=step))
        save_state(TRAIN_RUNS / training_fingerprint(plan), state)
        assert gone(plan) == {older, other} | found


def test_classifiers_of_other_settings_go(plan, invoke) -> None:
    write_params(Path(), classifier={"model": {"channels": 8, "channel_mult": [1, 2]}, "train": CLASSIFIER})
    own, other = training_fingerprint(Project(load()).classifier_plan), "other"
    for name in (own, other):
        write_text(CLASSIFIER_RUNS / name / "state-000000007.sealed", "weights")
    (row,) = json.loads(invoke("prune", "--json").out)
    assert row["path"] == str(CLASSIFIER_RUNS / other)


def save_guided_model(plan, ema: list) -> None:
    """Write params.yaml with a guide, and a model with the snapshots of its EMA profiles."""
    write_params(
        Path(),
        train={"ema_profiles": {"sigma_rel": [0.05, 0.1], "every": 4}, "p_uncond": 0.1},
        sample={"guidance": 1.0},
        sweep={"guide": ["ema:0.07@4"], "ema": ema},
    )
    weights, artefact = network_of(plan.network).state_dict(), plan_artefact(plan)
    save_artefact(MODEL, weights, artefact.model_copy(update={"step": 8}))
    for sigma_rel, step in itertools.product((0.05, 0.1), (4, 8)):
        one = artefact.model_copy(update={"step": step, "ema_sigma_rel": sigma_rel})
        save_artefact(snapshot_path(AVERAGES, sigma_rel, step), weights, one)


@pytest.mark.slow
def test_listing_makes_no_guide_and_keeps_those_of_the_grid(plan) -> None:
    save_guided_model(plan, ema=[0.07])
    assert gone(plan) == set()
    assert not Path("runs").exists()
    own = ema_model_file(matching_snapshots(MODEL), 0.07)
    assert gone(plan) == set(), "the model of a cell whose guide is missing"
    guide = ema_model_file(matching_snapshots(MODEL).until(4), 0.07)
    other = ema_model_file(matching_snapshots(MODEL), 0.2)
    assert gone(plan) == {other.parent}
    assert own != guide


def test_images_stay_while_a_network_of_their_cell_is_missing(plan) -> None:
    save_guided_model(plan, ema=["decay", 0.07])
    snapshots, config = matching_snapshots(MODEL), load()
    average, guide = ema_model_file(snapshots, 0.07), ema_model_file(snapshots.until(4), 0.07)
    for cell in grid(config.sample, config.sweep):
        networks = NetworkFiles(average if cell.ema else MODEL, guide).read()
        own = make_units(shards_folder(cell_settings(config.sample, cell), networks))
    outside = make_units(own.parent / "0123456789abcdef")
    other = make_units(CELL_RUNS / ("b" * 16) / "0123456789abcdef").parent
    assert gone(plan) == {outside, other}
    shutil.rmtree(guide.parent)
    assert gone(plan) == {other}, "the names of the cells' folders contain the guide"
    shutil.rmtree(average.parent)
    assert gone(plan) == set(), "the other model may be the average"


def test_images_stay_while_the_next_run_makes_their_model_again(plan) -> None:
    save_guided_model(plan, ema=["decay"])
    guide = ema_model_file(matching_snapshots(MODEL).until(4), 0.07).parent
    images = make_units(cells_folder(read_artefact(MODEL).model_sha256) / "0123456789abcdef").parent
    MODEL.unlink()  # as a training of other settings does, before it is stopped
    training, *_ = run_dir_of(plan, TRAIN_RUNS)
    save(training, plan, plan.train.steps)
    assert gone(plan) == set()
    shutil.rmtree(training)
    assert gone(plan) == {guide, images}


def test_files_of_the_champion_stay(plan) -> None:
    training = make_training("best", "best")
    cells = make_units(cells_folder("c" * 64) / "cell").parent
    fetched = MODEL_RUNS / ("d" * 64)
    write_text(fetched / "model.safetensors", "weights")
    assert gone(plan) == {training, cells, fetched}
    client, name = connect(tracking_uri()), keys.model_name("digits")
    run = client.create_run(ensure_experiment(client, "diffctl-digits"))
    client.create_registered_model(name)
    tags = {keys.KEY: "best", keys.MODEL_SHA256: "c" * 64, keys.FILE_SHA256: "d" * 64}
    client.create_model_version(name, "runs:/x/model", run.info.run_id, tags)
    client.set_registered_model_alias(name, keys.CHAMPION, "1")
    assert gone(plan) == set()


def test_files_are_listed_before_they_are_removed(plan, invoke) -> None:
    other = make_training("other", "other")
    listed = invoke("prune").out
    assert "training, 7 steps" in listed
    assert "`diffctl prune --yes`" in listed
    assert other.exists()
    (row,) = json.loads(invoke("prune", "--yes", "--json").out)
    assert (row["path"], row["removed"], row["size"] > 0) == (str(other), True, True)
    assert not other.exists()


def test_files_stay_while_a_sweep_or_a_run_uses_them(plan, invoke, monkeypatch) -> None:
    fetched, download = MODEL_RUNS / ("d" * 64), MODEL_RUNS / ".download-x"
    for folder in (fetched, download):
        write_text(folder / "model.safetensors", "weights")
    cells = make_units(CELL_RUNS / ("b" * 16) / "0123456789abcdef").parent
    removed = []

    def make_cell(*_) -> None:
        rows = json.loads(invoke("prune", "--yes", "--json").out)
        removed.extend(row["removed"] for row in rows)

    monkeypatch.setattr(cell_images, "make_cell", make_cell)
    config, files = load(), SimpleNamespace(of=lambda cell: None)
    cell = grid(config.sample, config.sweep)[0]
    run_sweep(config.sample, [cell], files, Path("samples"), lambda name: nullcontext())
    assert removed == [False, False]
    with group_lock(LOCK, "the nightly run"):
        assert_refused(invoke("prune", "--yes"), "the nightly run", code=1)
    assert gone(plan) == {fetched, cells}
    assert invoke("prune", "--yes").code == 0
    assert (fetched.exists(), cells.exists(), download.exists()) == (False, False, True)


def test_fetched_models_stay_from_their_fetch_on(plan, invoke, monkeypatch) -> None:
    fetched = MODEL_RUNS / ("d" * 64)
    write_text(fetched / "model.safetensors", "weights")

    def fetch(*_) -> None:
        remove_leftovers(find_leftovers(load(), [plan], ()))
        raise UsageError("kept" if fetched.exists() else "removed")

    monkeypatch.setattr("cli.actions.scores.model_sweep.selected_source", fetch)
    monkeypatch.setattr("cli.actions.trials.verdict.fix_bases", fetch)
    for command in (["sweep"], ["verdict", "train.batch_size=4"]):
        assert_refused(invoke(*command), "kept")


def test_without_data_or_mlflow_nothing_is_listed(project, plan, invoke, monkeypatch) -> None:
    make_training("other", "other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert_refused(invoke("prune"), "MLflow", code=75)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    write_params(project, data={"channels": 3})
    assert_refused(invoke("prune"), "`diffctl stage data`")


def test_nothing_is_listed_before_the_first_training(project, invoke) -> None:
    write_params(project, data={"channels": 3})  # the prepared data do not fit
    assert invoke("prune").out == "runs/ contains nothing to remove\n"
