"""The cells of a sweep in MLflow: a child run each, with scores, card and pictures."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from diffusion.choice.ranking import is_auxiliary
from diffusion.images.pictures import read_picture, to_pil
from diffusion.images.store import Images
from diffusion.protocol.card import EXTRACTOR_FIELDS, Card
from diffusion.protocol.scores import CellScores
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.system.section import fingerprint
from tracking.experiments import search_runs
from tracking.keys import CARD, CELL, PARENT
from tracking.mlflow_pages import series_name
from tracking.spool.spool_writer import flatten
from tracking.store import connect, tracking_uri, translate_errors

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient


def log_cells(client: "MlflowClient", parent: "Run", document: ScoresDocument) -> "dict[str, Run]":
    """Log a child run a cell, and its points on the parent's curves; returns the children by cell."""
    children = _children(client, parent)
    return {
        name: _log_cell(client, parent, name, cell, children.get((name, _protocol(cell))))
        for name, cell in document.cells.items()
    }


def log_samples(run_id: str, document: ScoresDocument, pictures: Mapping[str, Images]) -> None:
    """Show each scored cell's picture, of that name: on its child run, and on the training's.

    There it is of the series `samples-eta_<X>`, and its step is the number of sampling steps: MLflow's UI has
    a slider over them, and puts those of several trainings side by side. What is there stays. DiffctlError
    when MLflow does not answer.
    """
    uri = tracking_uri()
    with translate_errors(uri):
        client = connect(uri)
        parent = client.get_run(run_id)
        children = _children(client, parent)
        there = _pictures(client, parent)
        for name, cell in document.cells.items():
            if child := children.get((name, _protocol(cell))):
                time, picture = child.info.start_time, pictures[name]
                _log_picture(client, child, _pictures(client, child), Place("samples", 0, time), picture)
                place = Place(f"samples-{series_name(cell)}", cell.steps, time)
                _log_picture(client, parent, there, place, picture)


def fetch_samples(run: "Run", document: ScoresDocument) -> dict[str, Images]:
    """The picture (H, W, 3) of each cell of these scores, by name; cells that have none are left out.

    DiffctlError when MLflow does not answer, UsageError for a file that is no picture.
    """
    uri = tracking_uri()
    found: dict[str, Images] = {}
    with translate_errors(uri), tempfile.TemporaryDirectory() as scratch:
        client = connect(uri)
        children = _children(client, run)
        for name, cell in document.cells.items():
            child = children.get((name, _protocol(cell)))
            logged = [] if child is None else [path for path in _pictures(client, child) if _is_sample(path)]
            if child is not None and logged:
                file = client.download_artifacts(child.info.run_id, logged[0], scratch)
                found[name] = read_picture(Path(file), None, channels=3)
    return found


class Place(NamedTuple):
    """Where MLflow has a picture: in a series, by its step, and of which time."""

    key: str
    step: int
    time: int


def _pictures(client: "MlflowClient", run: "Run") -> list[str]:
    """The paths of a run's pictures."""
    return [file.path for file in client.list_artifacts(run.info.run_id, "images")]


def _is_sample(path: str) -> bool:
    """Whether it is a cell's picture on its child run, as a PNG."""
    return re.match(r"images/samples\Wstep\W.*\.png", path) is not None


def _log_picture(
    client: "MlflowClient", run: "Run", there: Sequence[str], place: Place, picture: Images
) -> None:
    """Log a picture unless it is `there`, among the paths of the run's pictures."""
    key, step, time = place
    logged = re.compile(rf"images/{re.escape(key)}\Wstep\W{step}\Wtimestamp\W{time}\W")
    if not any(map(logged.match, there)):
        client.log_image(
            run.info.run_id, to_pil(picture), key=key, step=step, timestamp=time, synchronous=True
        )


def _children(client: "MlflowClient", parent: "Run") -> "dict[tuple[str, str], Run]":
    """The cells that are there, by name and card's fingerprint."""
    query = f"tags.`{PARENT}` = '{parent.info.run_id}'"
    runs = search_runs(client, [parent.info.experiment_id], query)
    return {(run.data.tags.get(CELL, ""), run.data.tags.get(CARD, "")): run for run in runs}


def _protocol(cell: CellScores) -> str:
    """The fingerprint of a cell's card, or of those of all feature spaces."""
    beside = {name: seen.card for name, seen in cell.spaces.items()}
    return fingerprint({**cell.card, "spaces": beside} if beside else cell.card)


def _beside(cell: CellScores) -> dict[str, Card]:
    """By the name of each further extractor, what its card has of its own."""
    return {
        name: {field: seen.card.get(field) for field in EXTRACTOR_FIELDS}
        for name, seen in cell.spaces.items()
    }


def _log_cell(
    client: "MlflowClient", parent: "Run", name: str, cell: CellScores, child: "Run | None"
) -> "Run":
    from mlflow.entities import Metric, Param

    if child is None:
        tags = {PARENT: parent.info.run_id, CELL: name, CARD: _protocol(cell)}
        child = client.create_run(parent.info.experiment_id, tags=tags, run_name=name)
    # A score's time is its child's start: MLflow ignores a point that it has already.
    time, run_id = child.info.start_time, child.info.run_id
    scores = [Metric(key, value, time, 0) for key, value in cell.all_scores.items()]
    params = [Param(key, value) for key, value in flatten({**cell.card, **_beside(cell)}).items()]
    client.log_batch(run_id, metrics=scores, params=params)
    if child.info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")
    curves = [
        Metric(f"{key}/{series_name(cell)}", value, time, cell.steps)
        for key, value in cell.all_scores.items()
        if not is_auxiliary(key)
    ]
    client.log_batch(parent.info.run_id, metrics=curves)
    return child
