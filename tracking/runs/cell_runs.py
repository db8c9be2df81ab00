"""The cells of a sweep in MLflow: a child run each, with scores, card and picture."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.choice.ranking import is_auxiliary
from diffusion.images.pictures import read_picture, to_pil
from diffusion.images.store import Images
from diffusion.protocol.card import EXTRACTOR_FIELDS
from diffusion.protocol.scores_document import CellScores, ScoresDocument
from diffusion.system.section import fingerprint
from tracking.experiments import search_runs
from tracking.keys import CARD, CELL, PARENT
from tracking.mlflow_pages import series_name
from tracking.spool.spool_writer import flatten
from tracking.store import mlflow_client

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

SAMPLES = "samples"  # the series of a cell's picture


def log_cells(client: "MlflowClient", parent: "Run", document: ScoresDocument) -> "dict[str, Run]":
    """Log a child run for each cell, and its points on the parent's curves; return the children by cell."""
    children = _children(client, parent)
    return {
        name: _log_cell(client, parent, name, cell, children.get((name, _card_fingerprint(cell))))
        for name, cell in document.cells.items()
    }


def _log_cell(
    client: "MlflowClient", parent: "Run", name: str, cell: CellScores, child: "Run | None"
) -> "Run":
    from mlflow.entities import Metric, Param

    if child is None:
        tags = {PARENT: parent.info.run_id, CELL: name, CARD: _card_fingerprint(cell)}
        child = client.create_run(parent.info.experiment_id, tags=tags, run_name=name)
    # MLflow ignores a point that it has already, so all scores have the time of the child's start.
    time, run_id = child.info.start_time, child.info.run_id
    spaces = {
        space: {field: scores.card[field] for field in EXTRACTOR_FIELDS if field in scores.card}
        for space, scores in cell.spaces.items()
    }
    points = [Metric(key, value, time, 0) for key, value in cell.all_scores.items()]
    params = [Param(key, value) for key, value in flatten({**cell.card, **spaces}).items()]
    client.log_batch(run_id, metrics=points, params=params)
    if child.info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")
    curves = [
        Metric(f"{key}/{series_name(cell)}", value, time, cell.steps)
        for key, value in cell.all_scores.items()
        if not is_auxiliary(key)
    ]
    client.log_batch(parent.info.run_id, metrics=curves)
    return child


def log_samples(run_id: str, document: ScoresDocument, pictures: Mapping[str, Images]) -> None:
    """Log each scored cell's picture to its child run and to the training's run; existing ones stay.

    In the training's run, the series `samples-eta_<X>` has the number of sampling steps as its step: MLflow's
    UI has a slider over the steps, and compares several trainings. DiffctlError if MLflow does not answer.
    """
    with mlflow_client() as client:
        parent = client.get_run(run_id)
        children, logged = _children(client, parent), _picture_paths(client, parent)
        for name, cell in document.cells.items():
            if child := children.get((name, _card_fingerprint(cell))):
                time, picture = child.info.start_time, pictures[name]
                own = _picture_paths(client, child)
                _log_picture(client, child.info.run_id, own, (SAMPLES, 0, time), picture)
                place = (f"{SAMPLES}-{series_name(cell)}", cell.steps, time)
                _log_picture(client, run_id, logged, place, picture)


def fetch_samples(run: "Run", document: ScoresDocument) -> dict[str, Images]:
    """Return the picture (H, W, 3) of each cell that has one; DiffctlError if MLflow does not answer."""
    found: dict[str, Images] = {}
    with mlflow_client() as client, tempfile.TemporaryDirectory() as scratch:
        children = _children(client, run)
        for name, cell in document.cells.items():
            if child := children.get((name, _card_fingerprint(cell))):
                paths = _picture_paths(client, child)
                logged = [path for path in paths if re.match(rf"images/{SAMPLES}\Wstep\W.*\.png", path)]
                if logged:
                    file = client.download_artifacts(child.info.run_id, logged[0], scratch)
                    found[name] = read_picture(Path(file), None, channels=3)
    return found


def _picture_paths(client: "MlflowClient", run: "Run") -> list[str]:
    return [file.path for file in client.list_artifacts(run.info.run_id, "images")]


def _log_picture(
    client: "MlflowClient", run_id: str, logged: Sequence[str], place: tuple[str, int, int], picture: Images
) -> None:
    """Log a picture at `place` (series, step, time) unless it is among the `logged` paths."""
    key, step, time = place
    pattern = re.compile(rf"images/{re.escape(key)}\Wstep\W{step}\Wtimestamp\W{time}\W")
    if not any(map(pattern.match, logged)):
        client.log_image(run_id, to_pil(picture), key=key, step=step, timestamp=time, synchronous=True)


def _children(client: "MlflowClient", parent: "Run") -> "dict[tuple[str, str], Run]":
    """Return the logged cells by name and card's fingerprint."""
    query = f"tags.`{PARENT}` = '{parent.info.run_id}'"
    runs = search_runs(client, [parent.info.experiment_id], query)
    return {(run.data.tags.get(CELL, ""), run.data.tags.get(CARD, "")): run for run in runs}


def _card_fingerprint(cell: CellScores) -> str:
    """Return the fingerprint of a cell's card, with those of further feature spaces."""
    spaces = {name: scores.card for name, scores in cell.spaces.items()}
    return fingerprint({**cell.card, "spaces": spaces} if spaces else cell.card)
