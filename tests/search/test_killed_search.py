"""`diffctl search` for real: killed amid its trials and gone on with; the pipeline's files stay."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from diffusion.search.config import SearchConfig
from diffusion.search.folder import open_search, read_ended, trial_folder, write_trial
from diffusion.search.ledger import Ledger
from diffusion.search.trial import Ended
from diffusion.system.locks import is_held
from diffusion.system.params import read_params
from tests.conftest import command, diffctl, environment, write_params
from tests.helpers.mlflow_server import empty_database
from tests.helpers.training_process import logged_steps, uninterrupted, wait_for_step
from tests.helpers.waiting import wait_until
from tracking.spool.spool_events import read_events
from tracking.spool.training_status import list_trainings

FIELDS = {"train.seed": [3, 4]}
LONG = {"steps": 24, "log_every": 1, "save_every": 4, "preview_every": 24}


@pytest.fixture
def searching(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with data and reference, and a search over two seeds."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_database(project / "mlflow.db"))
    write_params(project, train=LONG, search={"fields": FIELDS, "method": "grid"})
    for stage in ("data", "reference"):
        done = diffctl(project, "stage", stage)
        assert done.returncode == 0, done.stderr
    return project


def trials(folder: Path):
    section = SearchConfig(fields=FIELDS, method="grid")
    return Ledger(folder / "runs/search/search", "search", section).trials()


@pytest.mark.long
def test_killed_it_loses_no_trial_and_makes_none_twice(searching: Path) -> None:
    write_params(searching, train={**LONG, "seed": 3})
    wanted = uninterrupted(searching)
    write_params(searching, train=LONG, search={"fields": FIELDS, "method": "grid"})

    process = subprocess.Popen(command("search"), cwd=searching, env=environment(), stderr=subprocess.PIPE)
    wait_for_step(searching, process, 9)
    busy = diffctl(searching, "search")
    assert busy.returncode == 1
    assert "the search search is running already" in busy.stderr
    process.kill()
    process.wait()
    (lock,) = searching.glob("runs/train/*/lock")
    wait_until(lambda: not is_held(lock))  # the trial ends with its search
    assert [trial.state for trial in trials(searching)] == ["running"]

    end = diffctl(searching, "search", "--json")
    assert end.returncode == 0, end.stderr
    assert "going on after step" in end.stderr
    told = json.loads(end.stdout)
    assert [trial["point"]["train.seed"] for trial in told["trials"]] == [3, 4]
    assert {trial["state"] for trial in told["trials"]} == {"done"}
    (group,) = told["settings"]
    assert group["trials"] == [0, 1]
    assert group["interval"][0] < group["value"] < group["interval"][1]
    assert logged_steps(searching).count(24) == 2
    assert (searching / "runs/search/search/trials/00000/unet.safetensors").read_bytes() == wanted
    assert not any((searching / name).exists() for name in ("samples", "metrics", "models/unet.safetensors"))

    again = diffctl(searching, "search", "--json")
    assert json.loads(again.stdout) == told
    assert "trial 1" not in again.stderr
    _are_children_of_one_run()


def _are_children_of_one_run() -> None:
    from tracking.keys import PARENT, SEARCH_ROOT
    from tracking.runs.run_lookup import training_runs
    from tracking.store import connect

    client = connect(os.environ["MLFLOW_TRACKING_URI"])
    runs = [run for run in training_runs(client) if PARENT in run.data.tags]
    assert len(runs) == 2
    (parent,) = {run.data.tags[PARENT] for run in runs}
    search = client.get_run(parent)
    assert SEARCH_ROOT in search.data.tags
    assert any(name.startswith("best/") for name in search.data.metrics)
    assert all(any(name.startswith("best/") for name in run.data.metrics) for run in runs)


@pytest.mark.slow
def test_a_trial_over_the_median_saves_and_ends_early(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three trials that were better at every step stand in the ledger before it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_database(project / "mlflow.db"))
    section = SearchConfig(fields={"train.seed": [0, 1, 2, 3]}, method="grid", prune=True)
    search = {"fields": {"train.seed": [0, 1, 2, 3]}, "method": "grid", "prune": True}
    write_params(project, train={"val_every": 2, "val_images": 8}, search=search)
    done = diffctl(project, "stage", "data")
    assert done.returncode == 0, done.stderr
    folder = project / "runs/search/search"
    open_search(folder, section, {}, "digest")
    ledger = Ledger(folder, "search", section)
    for seed in range(3):
        number = ledger.begin({"train.seed": seed}).number
        for step in range(2, 13, 2):
            ledger.report(number, step, 1e-6)
        ledger.end(number, Ended("done", 1.0))
    number = ledger.begin({"train.seed": 3}).number
    place = trial_folder(folder, number)
    write_trial(place, read_params(), {"train.seed": 3})

    ended = diffctl(project, "search-trial", str(place.relative_to(project)))
    assert ended.returncode == 0, ended.stderr
    assert read_ended(place) == Ended("pruned")
    assert list(ledger.trials()[number].reports) == [2]
    assert not (place / "unet.safetensors").exists()
    (state,) = project.glob("runs/train/*/state-*.sealed")
    assert int(state.stem.rpartition("-")[2]) < 12
    (training,) = list_trainings(project / "runs/train")
    tags = [event["values"] for event in read_events(training.folder) if event["kind"] == "tags"]
    assert {"diffctl.pruned": "2"} in tags
    assert training.state == "stopped"


@pytest.mark.slow
def test_what_no_trial_could_be_is_refused_before_the_first(searching: Path) -> None:
    refused = {
        "train.stepz": ([1], "unknown key"),
        "train.steps": ([10, -1], "train.steps"),
        "model.channels": ({"low": 8, "high": 9}, "model"),
        "process.schedule": (["no-such"], "process.schedule"),
    }
    for name, (values, told) in refused.items():
        write_params(searching, search={"fields": {name: values}, "trials": 2})
        done = diffctl(searching, "search")
        assert done.returncode == 2, done.stderr
        assert name in done.stderr
        assert told in done.stderr
        assert "Traceback" not in done.stderr
        assert not (searching / "runs/search").exists()


@pytest.mark.slow
def test_sigterm_saves_and_other_settings_are_another_search(searching: Path) -> None:
    process = subprocess.Popen(
        command("search"), cwd=searching, env=environment(), stderr=subprocess.PIPE, text=True
    )
    wait_for_step(searching, process, 6)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "Traceback" not in said
    write_params(searching, train={**LONG, "batch_size": 4}, search={"fields": FIELDS, "method": "grid"})
    other = diffctl(searching, "search")
    assert other.returncode == 2
    assert "batch_size" in other.stderr
    assert "--name" in other.stderr
