"""A verdict in MLflow: a run with its page and its scores, and a child run for each pair."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.layout import TRAIN_RUNS
from diffusion.system.locks import file_lock
from tracking.experiments import create_finished_run, ensure_experiment, find_by_tags
from tracking.keys import PARENT, VERDICT, experiment_name
from tracking.mlflow_pages import changed_note, note_tags
from tracking.store import mlflow_client

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

JSON, PAGE = "verdict.json", "verdict.html"
PAIR = "diffctl.pair"  # tag of a pair's run: its seed and its change
LOCK = TRAIN_RUNS / "verdict.lock"  # one process creates the runs


def log_verdict(key: str, title: str, values: dict[str, Any], page: str) -> str:
    """Log a verdict and its pairs, each number once; return the run's id."""
    with mlflow_client() as client, file_lock(LOCK), tempfile.TemporaryDirectory() as scratch:
        experiment = ensure_experiment(client, experiment_name(title))
        names = ", ".join(one["change"] for one in values["changes"])
        note = "\n\n".join(f"`{one['change']}`: {one['sentence']}" for one in values["changes"])
        tags = {VERDICT: key, PAIR: "all", **note_tags(note)}
        parent = _ensure_run(client, experiment, f"verdict {names}"[:200], tags)
        for name, value in changed_note(note, client.get_run(parent).data.tags).items():
            client.set_tag(parent, name, value)
        client.log_dict(parent, values, JSON)
        path = Path(scratch) / PAGE
        path.write_text(page, encoding="utf-8")
        client.log_artifact(parent, str(path))
        for number, change in enumerate(values["changes"]):
            found = {"gap": change["gap"], "detectable_gap": change["detectable_gap"]}
            _log_new(client, parent, {f"{name}/{number}": value for name, value in found.items()})
            for pair in change["pairs"]:
                _log_pair(client, experiment, (key, parent), number, change["change"], pair)
    return parent


def _log_pair(
    client: "MlflowClient",
    experiment: str,
    verdict: tuple[str, str],
    number: int,
    change: str,
    pair: dict[str, Any],
) -> None:
    """Log the scores of both arms in a pair and their gaps, in a child run of the verdict's."""
    key, parent = verdict
    tags = {VERDICT: key, PARENT: parent, PAIR: f"{number} {pair['seed']}"}
    run = _ensure_run(client, experiment, f"seed {pair['seed']}, {change}"[:200], tags)
    values = {f"{arm}/{name}": value for arm in ("control", "change") for name, value in pair[arm].items()}
    values |= {f"gap/{name}": value - pair["control"][name] for name, value in pair["change"].items()}
    _log_new(client, run, values)


def _ensure_run(client: "MlflowClient", experiment: str, name: str, tags: dict[str, str]) -> str:
    wanted = {tag: tags[tag] for tag in (VERDICT, PAIR)}
    if found := find_by_tags(client, [experiment], wanted):
        return str(found[0].info.run_id)
    return create_finished_run(client, experiment, name, tags)


def _log_new(client: "MlflowClient", run_id: str, values: dict[str, float | None]) -> None:
    """Log the metrics that the run does not have with these values."""
    logged = client.get_run(run_id).data.metrics
    for name, value in values.items():
        if value is not None and logged.get(name) != value:
            client.log_metric(run_id, name, value)
