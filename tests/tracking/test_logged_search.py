"""A search in MLflow: one run that is the parent of its trials."""

from pathlib import Path

from diffusion.system.locks import is_held
from tracking.experiments import SEARCH_LOCK, find_by_tags, log_search
from tracking.keys import PARENT, SEARCH, SEARCH_KEY, SEARCH_ROOT
from tracking.runs.run_lookup import training_runs
from tracking.spool.delivery import deliver
from tracking.spool.event_log import Spool
from tracking.spool.spool_status import SENT
from tracking.store import connect

KEY = "k" * 32


def write_trial(folder: Path, search_key: str = KEY) -> None:
    spool = Spool(folder, folder.name, f"trial {folder.name}", "diffctl-digits")
    spool.tags({SEARCH: "rates", SEARCH_KEY: search_key})
    spool.close("FINISHED")


def test_trials_are_children_of_one_run_however_often_they_are_sent(uri, tmp_path, monkeypatch) -> None:
    locked = []

    def find(client, experiments, tags):
        if SEARCH_ROOT in tags:
            locked.append(is_held(SEARCH_LOCK))
        return find_by_tags(client, experiments, tags)

    monkeypatch.setattr("tracking.experiments.find_by_tags", find)
    for key in ("a", "b"):
        write_trial(tmp_path / key)
    for key in ("a", "b", "a"):
        deliver(tmp_path / key, uri)
        (tmp_path / key / SENT).unlink()
    parent, again = (log_search(KEY, "rates", "digits", {"best": 1}, {"best/kid": 0.5}) for _ in range(2))
    assert parent == again
    assert all(locked), "the parent is looked up and created under a lock"
    client = connect(uri)
    trials = training_runs(client)
    assert len(trials) == 2, "the search itself is not a training"
    assert {run.data.tags[PARENT] for run in trials} == {parent}
    run = client.get_run(parent)
    assert run.data.tags[SEARCH_ROOT] == KEY
    assert run.data.metrics == {"best/kid": 0.5}
    assert len(client.get_metric_history(parent, "best/kid")) == 1


def test_trial_moves_to_a_later_search_of_the_same_name(uri: str, tmp_path: Path) -> None:
    """The spool writes only changed tags: the second key comes without the search's name."""
    for key in ("1" * 32, "2" * 32):
        write_trial(tmp_path / "training", key)
        deliver(tmp_path / "training", uri)
    client = connect(uri)
    (trial,) = training_runs(client)
    parent = client.get_run(trial.data.tags[PARENT]).data.tags
    assert (parent[SEARCH_ROOT], parent[SEARCH]) == ("2" * 32, "rates")
