"""Delivery of a spool to MLflow: every event once, with its own step and time, whatever fails in between.

`sent.json` records the progress. What was sent before a crash and is sent again is ignored by MLflow
(points), skipped (pictures) or changes nothing (tags, artifacts, status). An entry that MLflow never accepts
is written to `events.rejected`, so that it does not block the others. A file that the artifact store does not
take now is postponed: each later delivery tries it again.
"""

import json
from collections.abc import Callable, Sequence
from functools import singledispatchmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import UnidentifiedImageError

from diffusion.system.errors import DiffctlError, first_line, is_disk_full
from diffusion.system.files import sha256_file
from tracking import experiments
from tracking.connectivity import MlflowError
from tracking.keys import FILE_SHA256, MODEL_FOLDER, SEARCH_KEY
from tracking.mlflow_pages import NOTE, NOTE_DIGEST, changed_note
from tracking.spool.event_log import EVENTS, read_events, read_lines
from tracking.spool.events import (
    Artifact,
    Checkpoint,
    Dataset,
    Dropped,
    End,
    Event,
    Params,
    Picture,
    Points,
    Start,
    Tags,
    decode_event,
    encode_event,
)
from tracking.spool.spool_status import DeliveryState, read_status
from tracking.store import find, mlflow_client

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

MAX_POINTS, MAX_ENTRIES = 1000, 100  # MLflow's limits of a request: metrics; params or tags
MAX_TRIES = 3
DIGEST_LENGTH = 36  # MLflow's limit for a data set; a tag contains the full digest
MAX_SOURCE = 65_535  # characters of a data set's source, by MLflow
REJECTED = "events.rejected"
SQL_ERROR = "BAD_REQUEST"  # MLflow's code for most errors of its database, such as a pool timeout
REFUSALS = ("INVALID_PARAMETER_VALUE", SQL_ERROR)


class RunDeleted(DiffctlError):
    """Somebody deleted the training's run in MLflow."""


class DeliveryReport(NamedTuple):
    """How many points a delivery sent, and how many entries it rejected."""

    points: int
    rejected: int


def deliver(folder: Path, uri: str) -> DeliveryReport:
    """Deliver every complete line that the store at `uri` lacks. The caller holds the sender's lock.

    A run lost with its store is created again. MlflowError keeps the progress; RunDeleted if it was deleted.
    """
    with mlflow_client(uri) as client:
        return _Delivery(DeliveryState.load(folder, uri), client).run()


def mark_killed(folder: Path, uri: str) -> bool:
    """Set the run of a dead training to KILLED; return False if it is not dead or not delivered.

    The caller holds the sender's lock, so a new start of the training is delivered after this.
    """
    training, state = read_status(folder), DeliveryState.load(folder, uri)
    if training is None or training.state != "dead" or state.run_id is None or not state.complete:
        return False
    with mlflow_client(uri) as client:
        if client.get_run(state.run_id).info.status == "KILLED":
            return False
        client.set_terminated(state.run_id, "KILLED", end_time=training.updated)
    return True


class _Delivery:
    """One pass over the lines that were not sent."""

    def __init__(self, state: DeliveryState, client: "MlflowClient") -> None:
        self.state, self.client = state, client
        self.folder = state.folder
        self.waiting: list[Metric] = []
        self.points = self.rejected = 0
        self.failure: Exception | None = None  # of the file that was postponed last

    @property
    def run_id(self) -> str:
        """The run's id."""
        assert self.state.run_id is not None, "the run is created before anything is sent"
        return self.state.run_id

    def run(self) -> DeliveryReport:
        """Send everything, with points in large requests."""
        self._check_run()
        offset = self.state.offset
        for event, end in read_lines(self.folder, offset, durable=True):
            if self.state.run_id is None:
                self._create_run()
            if isinstance(event, Points):
                self.waiting += _points(event)
                offset = end
                if len(self.waiting) >= MAX_POINTS:
                    self._flush(offset)
                continue
            self._flush(offset)
            offset = end
            if event is None:
                self._reject(f"the line before byte {end}", ValueError("damaged"))
            else:
                self._send_or_reject(event)
            self._save_progress(offset)
        self._flush(offset)
        self._send_postponed()
        return DeliveryReport(self.points, self.rejected)

    def _send_postponed(self) -> None:
        """Send the files that an earlier pass could not store; MlflowError if some are still left."""
        if self.failure is None:  # else this pass has tried, and the store is away
            for line in self.state.postponed.copy():
                if (event := decode_event(line.encode())) is not None:
                    self._send_or_reject(event)  # appends the line again if the store is away
                self.state.postponed.remove(line)
                self._save_progress(self.state.offset)
        if self.failure is not None:
            count = len(self.state.postponed)
            raise MlflowError(
                f"files that MLflow cannot store now: {count}, {self.failure}"
            ) from self.failure

    def _check_run(self) -> None:
        """Start again if the store lost the run; RunDeleted if somebody deleted it."""
        if self.state.run_id is None:
            return
        run = find(self.client.get_run, self.state.run_id)
        if run is None:
            self.state = DeliveryState(folder=self.folder, store=self.state.store, key=self.state.key)
            return
        self._check_active(run)

    def _check_active(self, run: "Run") -> None:
        """Raise RunDeleted if somebody deleted the run."""
        self.state.deleted = run.info.lifecycle_stage == "deleted"
        if self.state.deleted:
            self.state.save()
            gone = f"run {self.state.run_id} ({self.folder}) was deleted in MLflow and gets nothing"
            raise RunDeleted(f"{gone}: restore it by `mlflow runs restore --run-id {self.state.run_id}`")

    def _create_run(self) -> None:
        """Create the run that the spool's first undamaged start names; MlflowError without a start."""
        start = next((event for event in read_events(self.folder) if isinstance(event, Start)), None)
        if start is None:
            raise MlflowError(f"{self.folder / EVENTS} is damaged: no line names its training")
        experiment = experiments.ensure_experiment(self.client, start.experiment)
        self.state.run_id = experiments.ensure_run(self.client, experiment, start.key, start.name, start.time)
        self.state.save()

    def _flush(self, offset: int) -> None:
        if self.waiting:
            self._log("metrics", self.waiting, MAX_POINTS)
            self.points += len(self.waiting)
            self.waiting = []
            self._save_progress(offset)

    def _save_progress(self, offset: int) -> None:
        self.state.offset, self.state.tries = offset, 0
        self.state.save()

    def _send_or_reject(self, event: Event) -> None:
        """Send an event other than metrics; reject one that MLflow refuses."""
        from mlflow.exceptions import MlflowException

        try:
            self._send(event)
        except MlflowException as error:
            self._handle_refusal(event.kind, event.model_dump(), error)

    @singledispatchmethod
    def _send(self, event: Event) -> None:
        """Send an event other than metrics, by the method for its class."""
        raise TypeError(event.kind)

    @_send.register
    def _start(self, event: Start) -> None:
        if self.client.get_run(self.run_id).info.status != "RUNNING":  # the training resumed
            self.client.update_run(self.run_id, status="RUNNING")

    @_send.register
    def _dropped(self, event: Dropped) -> None:
        if not experiments.drop_checkpoint(self.client, self.run_id, event.step):
            self._reject(event.model_dump(), PermissionError("only the experiment's creator may delete it"))

    @_send.register
    def _status(self, event: End) -> None:
        self.client.set_terminated(self.run_id, event.status, end_time=event.time)

    @_send.register
    def _params(self, event: Params) -> None:
        from mlflow.entities import Param

        self._log("params", [Param(*entry) for entry in event.values.items()], MAX_ENTRIES)

    @_send.register
    def _tags(self, event: Tags) -> None:
        from mlflow.entities import RunTag

        values = event.values
        if NOTE in values:
            tags, note = self.client.get_run(self.run_id).data.tags, values[NOTE]
            values = {name: text for name, text in values.items() if name not in (NOTE, NOTE_DIGEST)}
            if not tags.get(NOTE, "").startswith(note):  # else scores may follow it
                values |= changed_note(note, tags)
        self._log("tags", [RunTag(*entry) for entry in values.items()], MAX_ENTRIES)
        if SEARCH_KEY in event.values:
            experiments.join_search(self.client, self.run_id, event.values[SEARCH_KEY])

    @_send.register
    def _dataset(self, event: Dataset) -> None:
        from mlflow import entities

        source = json.dumps({"tags": {"digest": event.digest, "classes": event.classes}})
        if len(source) > MAX_SOURCE:
            source = json.dumps({"tags": {"digest": event.digest, "classes": len(event.classes)}})
        dataset = entities.Dataset(event.name, event.digest[:DIGEST_LENGTH], "code", source)
        used = entities.DatasetInput(dataset, [entities.InputTag("mlflow.data.context", "training")])
        # It fails if another training inserts the same data set at this moment: the next try succeeds.
        self.client.log_inputs(self.run_id, [used])

    @_send.register
    def _picture(self, event: Picture) -> None:
        from PIL import Image

        place = event.key, event.step, event.time

        def log() -> None:
            with Image.open(self.folder / event.path) as picture:
                experiments.log_picture(self.client, self.run_id, place, picture)

        self._upload(event, log)

    @_send.register
    def _artifact(self, event: Artifact) -> None:
        path = self.folder / event.path

        def log() -> None:
            if sha256_file(path) != event.sha256:
                raise DiffctlError(f"{path} changed since it was logged")
            self.client.log_artifact(self.run_id, str(path), event.folder or None)
            if event.folder == MODEL_FOLDER:
                self.client.set_tag(self.run_id, FILE_SHA256, event.sha256)

        self._upload(event, log)

    @_send.register
    def _checkpoint(self, event: Checkpoint) -> None:
        """Log the step's weights as a LoggedModel with its scores, unless the file was deleted since."""
        path = self.folder / event.path

        def log() -> None:
            model_id = experiments.ensure_checkpoint(self.client, self.run_id, event.step, path)
            self.client.log_batch(self.run_id, metrics=_points(event, model_id))

        if path.exists():
            self._upload(event, log)

    def _log(self, kind: str, entries: Sequence[Any], limit: int) -> None:
        """Log metrics, params or tags in requests of at most `limit`; halve a refused request repeatedly."""
        from mlflow.exceptions import MlflowException

        for start in range(0, len(entries), limit):
            some = entries[start : start + limit]
            request: dict[str, Any] = {kind: some}
            try:
                self.client.log_batch(self.run_id, **request)
            except MlflowException as error:
                if len(some) > 1 and error.error_code in REFUSALS:
                    self._log(kind, some, len(some) // 2)
                else:
                    self._handle_refusal(some[0].key, dict(some[0]), error)

    def _handle_refusal(self, name: str, entry: Any, error: "MlflowException") -> None:
        """Reject an entry that MLflow refuses, after several tries if it is an SQL error; raise other errors.

        RunDeleted if the run was deleted meanwhile, which MLflow reports as an invalid value.
        """
        if error.error_code not in REFUSALS:
            raise error
        self._check_active(self.client.get_run(self.run_id))
        if error.error_code == SQL_ERROR:
            self._count_try(name, error)
        self._reject(entry, error)

    def _upload(self, event: Picture | Artifact | Checkpoint, upload: Callable[[], None]) -> None:
        """Upload the event's file. Postpone one that fails; reject it if it is bad after several tries."""
        try:
            upload()
        except Exception as error:  # every artifact store raises its own errors
            if is_disk_full(error):  # a later try may succeed
                raise
            self.client.get_run(self.run_id)  # raises if the server itself is away
            if _is_lasting(error) or not (self.folder / event.path).exists():
                self._count_try(event.path, error)
                self._reject(event.model_dump(), error)
            else:
                self.state.postponed.append(encode_event(event).decode())
                self.failure = error

    def _count_try(self, name: str, error: Exception) -> None:
        """Raise MlflowError unless this is the last try."""
        self.state.tries += 1
        if self.state.tries < MAX_TRIES:
            self.state.save()
            raise MlflowError(f"{name} cannot be stored in MLflow: {error}") from error

    def _reject(self, entry: Any, error: Exception) -> None:
        with open(self.folder / REJECTED, "a", encoding="utf-8") as file:
            file.write(json.dumps({"entry": entry, "reason": first_line(error)}) + "\n")
        self.rejected += 1


def _is_lasting(error: Exception) -> bool:
    """Return whether an upload fails for a damaged or changed file, or an entry that MLflow refuses."""
    from mlflow.exceptions import MlflowException

    is_refused = isinstance(error, MlflowException) and error.error_code in REFUSALS
    is_answer = isinstance(error, OSError | json.JSONDecodeError)  # such as a page of HTML in an outage
    is_bad = isinstance(error, ValueError) and not is_answer
    return is_refused or is_bad or isinstance(error, DiffctlError | UnidentifiedImageError)


def _points(event: Points | Checkpoint, model_id: str | None = None) -> "list[Metric]":
    """Return the event's points, of a LoggedModel if it is given."""
    from mlflow.entities import Metric

    time, step = event.time, event.step
    return [Metric(key, float(value), time, step, model_id) for key, value in event.values.items()]
