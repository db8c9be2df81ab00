"""A verdict in MLflow: a run with its page and its scores, and a child run for each pair."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.layout import TRAIN_RUNS
from diffusion.system.locks import file_lock
from tracking.experiments import ensure_experiment, ensure_finished_run, log_changed_metrics
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
        identity = {VERDICT: key, PAIR: "all"}
        parent = ensure_finished_run(client, experiment, f"verdict {names}"[:200], identity, note_tags(note))
        for name, value in changed_note(note, client.get_run(parent).data.tags).items():
            client.set_tag(parent, name, value)
        client.log_dict(parent, values, JSON)
        path = Path(scratch) / PAGE
        path.write_text(page, encoding="utf-8")
        client.log_artifact(parent, str(path))
        for number, change in enumerate(values["changes"]):
            found = {"gap": change["gap"], "detectable_gap": change["detectable_gap"]}
            log_changed_metrics(client, parent, {f"{name}/{number}": value for name, value in found.items()})
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
    name, identity = f"seed {pair['seed']}, {change}"[:200], {VERDICT: key, PAIR: f"{number} {pair['seed']}"}
    run = ensure_finished_run(client, experiment, name, identity, {PARENT: parent})
    values = {f"{arm}/{name}": value for arm in ("control", "change") for name, value in pair[arm].items()}
    values |= {f"gap/{name}": value - pair["control"][name] for name, value in pair["change"].items()}
    log_changed_metrics(client, run, values)
