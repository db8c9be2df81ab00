"""`diffctl search` as a process: killed, resumed, pruned and refused."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cli.actions.trials import trial_search
from cli.actions.trials.trial_search import Trials
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import PREPARED
from diffusion.search.search_config import SearchConfig
from diffusion.search.study import SearchStudy
from diffusion.system.checksums import JsonObject, add_checksum, read_json
from diffusion.system.files import write_json
from diffusion.system.locks import is_held
from diffusion.system.params import read_params
from diffusion.trials.trial_runs import (
    ABOUT,
    About,
    Trial,
    TrialResult,
    open_about,
    read_result,
    trial_dir,
    write_trial_params,
)
from tests.conftest import diffctl, start_diffctl, write_params
from tests.helpers.invoke import Invoke, assert_refused
from tests.helpers.mlflow_server import empty_database
from tests.helpers.networks import small_model
from tests.helpers.prepared import copy_data, reverse_held_out_images
from tests.helpers.training_process import logged_steps, uninterrupted, wait_for_step
from tests.helpers.waiting import wait_until
from tests.search.conftest import LONG, SEARCH, SWEEP, trials
from tracking.keys import PARENT, SEARCH_ROOT, SETTING
from tracking.runs.run_lookup import training_runs
from tracking.spool.event_log import read_events
from tracking.spool.spool_status import list_trainings
from tracking.store import connect

ENDLESS = {**LONG, "steps": 100_000}


@pytest.mark.long
def test_killed_search_loses_and_repeats_no_trial(searching: Path) -> None:
    write_params(searching, train={**LONG, "seed": 3})
    wanted = uninterrupted(searching)
    write_params(searching, train=LONG, sweep=SWEEP, search=SEARCH)

    process = start_diffctl(searching, "search")
    wait_for_step(searching, process, 9)
    trial = psutil.Process(process.pid).children(recursive=True)
    for one in trial:
        one.suspend()  # it must not end meanwhile
    busy = diffctl(searching, "search")
    assert (busy.returncode, "is running" in busy.stderr) == (1, True)
    process.kill()
    process.wait()
    for one in trial:
        with suppress(psutil.NoSuchProcess):
            one.resume()
    (lock,) = searching.glob("runs/train/*/lock")
    wait_until(lambda: not is_held(lock))
    assert [trial.state for trial in trials(searching)] == ["running"]

    end = diffctl(searching, "search", "--json")
    assert end.returncode == 0, end.stderr
    assert "resuming after step" in end.stderr
    found = json.loads(end.stdout)
    assert [trial["point"]["train.seed"] for trial in found["trials"]] == [3, 4]
    assert {trial["state"] for trial in found["trials"]} == {"done"}
    (group,) = found["settings"]
    assert group["trials"] == [0, 1]
    assert group["interval"][0] < group["value"] < group["interval"][1]
    assert logged_steps(searching).count(40) == 2
    assert (searching / "runs/search/search/trials/00000/model.safetensors").read_bytes() == wanted
    assert not any((searching / name).exists() for name in ("samples", "metrics", "models/model.safetensors"))

    again = diffctl(searching, "search", "--json")
    assert json.loads(again.stdout) == found
    assert "trial 0" not in again.stderr

    client = connect(os.environ["MLFLOW_TRACKING_URI"])
    runs = [run for run in training_runs(client) if PARENT in run.data.tags]
    assert len(runs) == 2
    (parent,) = {run.data.tags[PARENT] for run in runs}
    search = client.get_run(parent)
    assert SEARCH_ROOT in search.data.tags
    assert any(name.startswith("best/") for name in search.data.metrics)
    for run in runs:
        (name, *_) = sorted(key for key in run.data.metrics if key.startswith("best/"))
        points = client.get_metric_history(run.info.run_id, name)
        assert {point.step for point in points} == {0}, "a later evaluation replaces it"
    assert all(SETTING in run.data.tags for run in runs), "`diffctl seeds` finds them"


@pytest.mark.slow
def test_trial_above_the_median_saves_and_ends_early(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three earlier trials are better at every step."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_database(project / "mlflow.db"))
    search = {"fields": {"train.seed": [0, 1, 2, 3]}, "method": "grid", "prune": True}
    section = SearchConfig(**search)
    write_params(project, train={"val_every": 2, "val_images": 8}, search=search)
    copy_data(project)
    folder = project / "runs/search/search"
    open_about(folder, About(key="a search", settings={}, search={}))
    study = SearchStudy(folder, section)
    for seed in range(3):
        number = study.start({"train.seed": seed}).number
        for step in range(2, 13, 2):
            study.report(number, step, 1e-6)
        study.finish(number, TrialResult("done", 1.0))
    number = study.start({"train.seed": 3}).number
    folder_of_trial = trial_dir(folder, number)
    write_trial_params(folder_of_trial, read_params(), {"train.seed": 3})

    ended = diffctl(project, "search-trial", str(folder_of_trial.relative_to(project)))
    assert ended.returncode == 0, ended.stderr
    result = read_result(folder_of_trial)
    assert result is not None
    assert result.state == "pruned"
    assert list(study.trials()[number].reports) == [2]
    assert not (folder_of_trial / "model.safetensors").exists()
    (state,) = project.glob("runs/train/*/state-*.sealed")
    assert int(state.stem.rpartition("-")[2]) < 12
    (training,) = list_trainings(project / "runs/train")
    tags = [event.values for event in read_events(training.folder) if event.kind == "tags"]
    assert {"diffctl.pruned": "2"} in tags
    assert training.state == "stopped"


def test_invalid_points_are_refused_before_the_first_trial(project: Path, invoke: Invoke) -> None:
    refused = {
        "train.stepz": ([1], "unknown key"),
        "train.steps": ([10, -1], "train.steps"),
        "model.channels": ({"low": 8, "high": 9}, "model"),
        "process.schedule": (["no-such"], "process.schedule"),
    }
    for name, (values, words) in refused.items():
        write_params(project, search={"fields": {name: values}, "trials": 2})
        assert_refused(invoke("search"), name, words)
        assert not (project / "runs/search").exists()


def test_point_of_a_range_that_cannot_be_planned_is_a_failed_trial(project: Path) -> None:
    copy_data(project)
    write_params(project, model={"name": "dit", "width": 32, "depth": 1, "heads": 2, "patch_size": 2})
    meta = open_store(PREPARED / "train", PreparedMeta).meta
    found = Trials(Path("runs/search/it"), read_params(), meta, 2).begin(Trial(0, {"model.patch_size": 3}))
    assert found is not None
    assert (found.state, "patch_size 3 must divide" in found.reason) == ("failed", True)


@pytest.mark.slow
def test_pruning_by_losses_that_cannot_be_compared_is_refused(project: Path, invoke: Invoke) -> None:
    copy_data(project)
    contrastive = {"loss": "contrastive", "variance": "small"}
    refused = (
        ({}, "process.prediction", ["eps", "x0"]),
        ({}, "train.val_images", [4, 8]),
        (contrastive, "train.batch_size", {"low": 4, "high": 8}),
    )
    for process, name, values in refused:
        write_params(project, process=process, search={"fields": {name: values}, "trials": 2, "prune": True})
        assert_refused(invoke("search"), "search.prune", f"({name}")
    write_params(project, search={"fields": {"train.batch_size": [4, 8]}, "trials": 2, "prune": True})
    assert_refused(invoke("search"), "data/reference")


@pytest.mark.slow
def test_sigterm_saves_and_other_settings_need_another_name(searching: Path, invoke: Invoke) -> None:
    write_params(searching, train=ENDLESS, search=SEARCH)
    process = start_diffctl(searching, "search")
    wait_for_step(searching, process, 6)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143, stderr
    assert "Traceback" not in stderr
    write_params(searching, train={**ENDLESS, "batch_size": 4}, search=SEARCH)
    assert_refused(invoke("search"), "batch_size", "--name")


def test_search_with_other_images_guide_or_torch_needs_another_name(
    project: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search of an older version, which did not store their digests, is read."""
    guided = {"guidance": 1.0, "guide": "guide.safetensors"}
    write_params(project, search=SEARCH, sample=guided)
    copy_data(project)
    small_model(Path("guide.safetensors"))
    for name in ("check_scoring", "preflight"):
        monkeypatch.setattr(trial_search, name, lambda *ignored: None)
    monkeypatch.setattr(trial_search, "run_search", lambda *ignored: [])
    assert_refused(invoke("search"), "none of the 0 trials", code=1)
    reverse_held_out_images()
    assert_refused(invoke("search"), "(data/prepared/test)", "--name")
    reverse_held_out_images()
    with monkeypatch.context() as other:
        other.setattr("diffusion.trials.trial_inputs.torch_version", lambda: "0.1")
        assert_refused(invoke("search"), "(torch)", "--name")
    small_model(Path("guide.safetensors"), seed=1)
    assert_refused(invoke("search"), "(guide)", "--name")
    path = Path("runs/search/search", ABOUT)
    about = read_json(path, JsonObject)
    del about["inputs"]
    write_json(path, add_checksum({**about, "data_digest": "of an older version"}))
    assert_refused(invoke("search"), "none of the 0 trials", code=1)
