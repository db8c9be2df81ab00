"""A search in MLflow: one run, whose children are its trials' however often they are delivered."""

from pathlib import Path

from diffusion.system.locks import is_held
from tests.helpers.mlflow_server import empty_database
from tracking.delivery import SENT, deliver
from tracking.lookup import parent_runs
from tracking.names import PARENT, SEARCH, SEARCH_KEY, SEARCH_ROOT
from tracking.searches import LOCK, log_search
from tracking.spool import Spool
from tracking.store import connect, find_by_tags


def test_trials_are_children_of_one_run_however_often_they_are_sent(tmp_path: Path, monkeypatch) -> None:
    uri = empty_database(tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for key in ("a", "b"):
        spool = Spool(tmp_path / key, key, f"trial {key}", "diffctl-digits")
        spool.tags({SEARCH: "rates", SEARCH_KEY: "k" * 32})
        spool.close("FINISHED")
    for key in ("a", "b", "a"):
        deliver(tmp_path / key, uri)
        (tmp_path / key / SENT).unlink()
    parent = log_search("k" * 32, "rates", "digits", {"best": 1}, {"best/kid": 0.5}, tmp_path)
    assert log_search("k" * 32, "rates", "digits", {"best": 1}, {"best/kid": 0.5}, tmp_path) == parent
    client = connect(uri)
    trials = parent_runs(client)
    assert len(trials) == 2, "the search itself is no training"
    assert {run.data.tags[PARENT] for run in trials} == {parent}
    run = client.get_run(parent)
    assert run.data.tags[SEARCH_ROOT] == "k" * 32
    assert run.data.metrics == {"best/kid": 0.5}
    assert len(client.get_metric_history(parent, "best/kid")) == 1


def test_the_parent_is_looked_for_and_made_under_a_lock(tmp_path: Path, monkeypatch) -> None:
    """Else trials that are delivered at one moment would each make one."""
    locked = []

    def find(client, experiments, tags):
        locked.append(is_held(tmp_path / LOCK))
        return find_by_tags(client, experiments, tags)

    monkeypatch.setattr("tracking.searches.find_by_tags", find)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_database(tmp_path / "mlflow.db"))
    log_search("k" * 32, "rates", "digits", {"best": 1}, {}, tmp_path)
    assert locked == [True]
    assert not is_held(tmp_path / LOCK)


def test_a_search_that_is_begun_anew_under_its_name_takes_a_training_over(tmp_path: Path) -> None:
    """A tag is written where it is new alone: the second search's key comes without its name."""
    uri = empty_database(tmp_path / "mlflow.db")
    folder = tmp_path / "training"
    for key in ("1" * 32, "2" * 32):
        spool = Spool(folder, "a", "trial a", "diffctl-digits")
        spool.tags({SEARCH: "rates", SEARCH_KEY: key})
        spool.close("FINISHED")
        deliver(folder, uri)
    client = connect(uri)
    (trial,) = parent_runs(client)
    parent = client.get_run(trial.data.tags[PARENT]).data.tags
    assert (parent[SEARCH_ROOT], parent[SEARCH]) == ("2" * 32, "rates")
