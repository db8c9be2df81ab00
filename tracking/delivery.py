"""Delivery of a spool to MLflow: every entry once, with its own step and time, whatever breaks in between.

`sent.json` beside the spool says how far it came. What was sent before a crash and is sent again is
ignored by MLflow (points) or changes nothing (tags, artifacts, status). An entry that MLflow will never
take is set aside in `events.rejected`, so that it holds up no other.
"""

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from diffusion.errors import DiffctlError
from diffusion.files import write_json
from tracking.checkpoints import drop_checkpoint, ensure_checkpoint
from tracking.names import FILE_SHA256, KEY, MODEL_FOLDER
from tracking.pictures import picture_files
from tracking.spool import Event, read_lines
from tracking.store import (
    MlflowError,
    connect,
    ensure_experiment,
    ensure_run,
    failures,
    find_by_tags,
    public,
)
from tracking.trainings import read_training

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

POINTS, ENTRIES = 1000, 100  # MLflow's limits of one request: metrics; params or tags
UPLOAD_SECONDS = 60  # a server may take a while to store a file
UPLOAD_TRIES = 3
DIGEST_LENGTH = 36  # MLflow's limit; the whole digest is a tag
REJECTED = "events.rejected"
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")

T = TypeVar("T")


class RunDeleted(DiffctlError):
    """The training's run was deleted in MLflow."""


@dataclasses.dataclass
class Sent:
    """How far the spool in `folder` was delivered to `store`: the byte offset, and the run it became."""

    folder: Path
    store: str
    run_id: str | None = None
    offset: int = 0
    tries: int = 0  # of the upload that comes next
    deleted: bool = False  # the run, by someone

    @classmethod
    def load(cls, folder: Path, uri: str) -> "Sent":
        """What `sent.json` says; nothing was sent where it speaks of another store."""
        try:
            values = json.loads((folder / "sent.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            values = {}
        known = values.get("store") == public(uri)
        return cls(folder, **values) if known else cls(folder, public(uri))

    def save(self) -> None:
        """Write `sent.json`."""
        write_json(self.folder / "sent.json", {k: v for k, v in vars(self).items() if k != "folder"})

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do: every whole line was delivered, or the run was deleted."""
        return self.deleted or next(read_lines(self.folder, self.offset), None) is None


@dataclasses.dataclass(frozen=True)
class Delivered:
    """What one delivery did: the run, how many points were sent and how many entries set aside."""

    run_id: str | None
    points: int
    rejected: int

    def __str__(self) -> str:
        aside = f", {self.rejected} entries set aside in {REJECTED}" if self.rejected else ""
        return (
            f"{self.points:,} points delivered{aside}" if self.points or aside else "all of it is in MLflow"
        )


def deliver(folder: Path, uri: str) -> Delivered:
    """Deliver every whole line that the store at `uri` does not have. The caller holds the sender's lock.

    A run that is gone with its whole store is made again. MlflowError when MLflow cannot take it now: what
    was delivered stays delivered. RunDeleted when someone deleted the run.
    """
    with failures(uri):
        return _Delivery(Sent.load(folder, uri), connect(uri)).run()


def mark_killed(folder: Path, uri: str) -> bool:
    """Give the run of a dead training the status KILLED; False when it is not dead or not delivered.

    The caller holds the sender's lock, so a new start of the training is delivered after this.
    """
    training, sent = read_training(folder), Sent.load(folder, uri)
    if training is None or training.state != "dead" or sent.run_id is None or not sent.complete:
        return False
    with failures(uri):
        client = connect(uri)
        if client.get_run(sent.run_id).info.status == "KILLED":
            return False
        client.set_terminated(sent.run_id, "KILLED", end_time=training.updated)
        _drop_twins(client, sent.run_id)
    return True


class _Delivery:
    """One pass over what has not been sent."""

    def __init__(self, sent: Sent, client: "MlflowClient") -> None:
        self.sent, self.client = sent, client
        self.folder = sent.folder
        self.waiting: list[Metric] = []
        self.points = self.rejected = 0

    @property
    def run_id(self) -> str:
        """The run; a spool's first entry makes it."""
        assert self.sent.run_id is not None, "a spool begins with its start"
        return self.sent.run_id

    def run(self) -> Delivered:
        """Send everything, points together in large requests."""
        self._check_run()
        offset = self.sent.offset
        for event, end in read_lines(self.folder, offset):
            if event is not None and event["kind"] == "metrics":
                self.waiting += _metrics(event)
                offset = end
                if len(self.waiting) >= POINTS:
                    self._flush(offset)
                continue
            self._flush(offset)
            offset = end
            if event is None:
                self._reject(f"the line before byte {end}", ValueError("damaged"))
            else:
                self._handle(event)
            self._reached(offset)
        self._flush(offset)
        return Delivered(self.sent.run_id, self.points, self.rejected)

    def _check_run(self) -> None:
        """Begin anew where the store has forgotten the run: it was emptied, or is another one."""
        from mlflow.exceptions import MlflowException

        if self.sent.run_id is None:
            return
        try:
            stage = self.client.get_run(self.sent.run_id).info.lifecycle_stage
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.sent = Sent(self.folder, self.sent.store)
            return
        self.sent.deleted = stage == "deleted"
        if self.sent.deleted:
            self.sent.save()
            raise RunDeleted(
                f"run {self.sent.run_id} ({self.folder}) was deleted in MLflow: it gets no more entries"
            )

    def _flush(self, offset: int) -> None:
        if self.waiting:
            self._log(self.waiting, POINTS, lambda points: self.client.log_batch(self.run_id, metrics=points))
            self.points += len(self.waiting)
            self.waiting = []
            self._reached(offset)

    def _reached(self, offset: int) -> None:
        self.sent.offset, self.sent.tries = offset, 0
        self.sent.save()

    def _handle(self, event: Event) -> None:
        handlers: dict[str, Callable[[Event], None]] = {
            "start": self._start,
            "params": self._params,
            "tags": self._tags,
            "dataset": self._dataset,
            "image": self._image,
            "artifact": self._artifact,
            "checkpoint": self._checkpoint,
            "dropped": lambda event: drop_checkpoint(self.client, self.run_id, event["step"]),
            "status": self._status,
        }
        handler = handlers.get(event["kind"])
        if handler:
            handler(event)
        else:
            self._reject(event, ValueError("of an unknown kind"))

    def _start(self, event: Event) -> None:
        if self.sent.run_id is None:
            experiment = ensure_experiment(self.client, event["experiment"])
            self.sent.run_id = ensure_run(self.client, experiment, event["key"], event["name"], event["time"])
            self.sent.save()
        if self.client.get_run(self.run_id).info.status != "RUNNING":  # a training that goes on
            self.client.update_run(self.run_id, status="RUNNING")

    def _params(self, event: Event) -> None:
        from mlflow.entities import Param

        params = [Param(key, value) for key, value in event["values"].items()]
        self._log(params, ENTRIES, lambda some: self.client.log_batch(self.run_id, params=some))

    def _tags(self, event: Event) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(key, value) for key, value in event["values"].items()]
        self._log(tags, ENTRIES, lambda some: self.client.log_batch(self.run_id, tags=some))

    def _dataset(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"tags": {"digest": event["digest"], "classes": event["classes"]}})
        dataset = Dataset(event["name"], event["digest"][:DIGEST_LENGTH], "code", source)
        tags = [InputTag("mlflow.data.context", "training")]
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])

    def _image(self, event: Event) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            self._upload(event, lambda: picture_files(event, self.folder, Path(scratch)), "images")
        self.client.set_tag(self.run_id, "mlflow.loggedImages", "True")

    def _artifact(self, event: Event) -> None:
        self._upload(event, lambda: [self.folder / event["path"]], event["folder"])
        if event["folder"] == MODEL_FOLDER:
            self.client.set_tag(self.run_id, FILE_SHA256, event["sha256"])

    def _checkpoint(self, event: Event) -> None:
        """The step's weights as a LoggedModel with its scores; nothing where the file is gone by now."""
        path = self.folder / event["path"]
        if not path.exists():
            return

        def log() -> None:
            model_id = ensure_checkpoint(self.client, self.run_id, event["step"], path)
            points = [_of_model(point, model_id) for point in _metrics(event)]
            self.client.log_batch(self.run_id, metrics=points)

        self._attempt(event, log)

    def _status(self, event: Event) -> None:
        self.client.set_terminated(self.run_id, event["status"], end_time=event["time"])
        _drop_twins(self.client, self.run_id)

    def _log(self, entries: Sequence[T], limit: int, log: Callable[[Sequence[T]], object]) -> None:
        """Log in requests of at most `limit`; halve a refused one until what is wrong stands alone."""
        from mlflow.exceptions import MlflowException

        for start in range(0, len(entries), limit):
            some = entries[start : start + limit]
            try:
                log(some)
            except MlflowException as error:
                if error.error_code not in REFUSALS:
                    raise
                if len(some) == 1:
                    self._reject(dict(some[0]), error)  # type: ignore[call-overload]
                else:
                    self._log(some, len(some) // 2, log)

    def _upload(self, event: Event, files: Callable[[], list[Path]], folder: str) -> None:
        """Upload files into the run's artifact folder; what fails again and again is set aside."""

        def upload() -> None:
            for path in files():
                self.client.log_artifact(self.run_id, str(path), folder or None)

        self._attempt(event, upload)

    def _attempt(self, event: Event, upload: Callable[[], None]) -> None:
        """Do the event's upload with the time that it takes; after some failed tries it is set aside."""
        try:
            with _patient():
                upload()
        except Exception as error:  # every kind of artifact store raises its own
            self.client.get_run(self.run_id)  # an outage of the server itself is not the file's fault
            self.sent.tries += 1
            if self.sent.tries < UPLOAD_TRIES:
                self.sent.save()
                raise MlflowError(f"{event['path']} cannot be stored in MLflow: {error}") from error
            self._reject(event, error)

    def _reject(self, entry: Any, error: Exception) -> None:
        reason = str(error).strip().splitlines()[0]
        with open(self.folder / REJECTED, "a", encoding="utf-8") as file:
            file.write(json.dumps({"entry": entry, "reason": reason}) + "\n")
        self.rejected += 1


def _metrics(event: Event) -> "list[Metric]":
    from mlflow.entities import Metric

    return [Metric(key, float(value), event["time"], event["step"]) for key, value in event["values"].items()]


def _of_model(point: "Metric", model_id: str) -> "Metric":
    from mlflow.entities import Metric

    return Metric(point.key, point.value, point.timestamp, point.step, model_id=model_id)


def _drop_twins(client: "MlflowClient", run_id: str) -> None:
    """Delete empty runs of the same key: a hung server makes one of a request that was given up."""
    run = client.get_run(run_id)
    for twin in find_by_tags(client, [run.info.experiment_id], {KEY: run.data.tags[KEY]}):
        if twin.info.run_id != run_id and not twin.data.metrics and not twin.data.params:
            client.delete_run(twin.info.run_id)


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """Give the requests inside the block the time that an upload takes."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    usual = os.environ[name]
    os.environ[name] = str(max(int(usual), UPLOAD_SECONDS))
    try:
        yield
    finally:
        os.environ[name] = usual
