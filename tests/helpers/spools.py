"""Spools with points, and the same points as MLflow has stored them."""

import json
from collections import Counter
from pathlib import Path

from mlflow.entities import Run

from diffusion.layout import MODEL, RUN, TRAIN_RUNS
from diffusion.system.checksums import add_checksum
from diffusion.system.files import write_json, write_text
from tracking import keys
from tracking.experiments import ensure_experiment, find_by_tags
from tracking.spool.event_log import Spool, read_events
from tracking.store import connect

EXPERIMENT = "diffctl-digits"
Points = Counter[tuple[str, int, int, float]]
"""How often each (metric, step, time, value) occurs."""


def open_spool(folder: Path, key: str = "key") -> Spool:
    """Open the spool of a training, with params, a tag and a data set."""
    spool = Spool(folder, key=key, name="digits-abcd", experiment=EXPERIMENT)
    spool.params({"train": {"steps": 30, "lr": 0.1}})
    spool.tags({keys.FINGERPRINT: folder.name})
    spool.dataset("digits", "d" * 64, ["0", "1"])
    return spool


def write_points(spool: Spool, start: int, stop: int) -> None:
    """Log two metrics for each step from `start` to `stop - 1`."""
    for step in range(start, stop):
        spool.metrics(step, {"loss": 1 / step, "grad/norm": float(step)})


def logged(folder: Path) -> Points:
    """Return the points in the spool."""
    events = [event for event in read_events(folder) if event.kind == "metrics"]
    return Counter((k, e.step, e.time, v) for e in events for k, v in e.values.items())


def stored(uri: str, key: str = "key") -> Points:
    """Return the points in MLflow."""
    client, run = connect(uri), the_run(uri, key)
    points = [
        point for name in run.data.metrics for point in client.get_metric_history(run.info.run_id, name)
    ]
    return Counter((point.key, point.step, point.timestamp, point.value) for point in points)


def the_run(uri: str, key: str = "key") -> Run:
    """Return the training's only run."""
    client = connect(uri)
    (run,) = find_by_tags(client, [ensure_experiment(client, EXPERIMENT)], {keys.KEY: key})
    return run


def run_of(folder: Path) -> tuple[Path, str]:
    """Return the folder of the project's only training, and its key."""
    (run,) = folder.glob("runs/train/*")
    return run, json.loads((run / "run.json").read_text())["key"]


def write_training(
    key: str = "key", fingerprint: str = "f1" * 8, end: str | None = "FINISHED", steps: int = 20
) -> Path:
    """Write the spool of a training of 20 steps with its model; a killed one has no `end`."""
    folder = TRAIN_RUNS / fingerprint
    write_text(MODEL, f"weights of {key}")  # writing in place would change the hard link
    spool = Spool(folder, key, f"digits-{fingerprint[:8]}", EXPERIMENT)
    spool.params({"train": {"steps": steps}})
    spool.tags({keys.FINGERPRINT: fingerprint})
    for step in (10, 20):
        spool.metrics(step, {"loss": 1 / step})
    if end:
        spool.artifact(MODEL, keys.MODEL_FOLDER)
        spool.close(end)
    write_json(RUN, add_checksum({"key": key, "fingerprint": fingerprint}))
    return folder
