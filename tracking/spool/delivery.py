"""Delivery of a spool to MLflow: every entry once, with its own step and time, whatever breaks in between.

`sent.json` beside the spool says how far it came. What was sent before a crash and is sent again is
ignored by MLflow (points) or changes nothing (tags, artifacts, status). An entry that MLflow will never
take is set aside in `events.rejected`, so that it holds up no other.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeInt

from diffusion.system.checksums import add_checksum, read_checksummed_json
from diffusion.system.errors import DiffctlError, is_disk_full
from diffusion.system.files import sha256_file, write_json
from diffusion.system.section import Section
from tracking.connectivity import MlflowError, redact_uri
from tracking.experiments import ensure_experiment, ensure_run
from tracking.keys import FILE_SHA256, MODEL_FOLDER, SEARCH_KEY
from tracking.runs.logged_search import join_search
from tracking.spool.logged_checkpoints import drop_checkpoint, ensure_checkpoint
from tracking.spool.spool_events import Event
from tracking.spool.spool_writer import EVENTS, read_events, read_lines
from tracking.spool.training_status import read_status
from tracking.store import connect, database_file, reason, translate_errors

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

POINTS, ENTRIES = 1000, 100  # MLflow's limits of one request: metrics; params or tags
UPLOAD_TRIES = 3
DIGEST_LENGTH = 36  # MLflow's limit; the whole digest is a tag
SENT = "sent.json"
REJECTED = "events.rejected"
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


class RunDeleted(DiffctlError):
    """The training's run was deleted in MLflow."""


class _Said(Section):
    """What `sent.json` holds: `DeliveryState` without its folder."""

    store: str
    key: str
    run_id: str | None
    offset: NonNegativeInt
    tries: NonNegativeInt
    deleted: bool


@dataclasses.dataclass
class DeliveryState:
    """How far the spool of the training `key` was delivered to `store`: the byte offset, and its run."""

    folder: Path
    store: str
    key: str
    run_id: str | None = None
    offset: int = 0
    tries: int = 0  # of the upload that comes next
    deleted: bool = False  # the run, by someone

    @classmethod
    def load(cls, folder: Path, uri: str) -> "DeliveryState":
        """What `sent.json` says; nothing was sent where it speaks of another store.

        Nor where it speaks of another training: one begun afresh in the folder while a sender was at work.
        """
        starts = (event for event in read_events(folder) if event["kind"] == "start")
        nothing = cls(folder, _store_seen_from(folder, uri), next(starts, {}).get("key", ""))
        try:
            said = read_checksummed_json(folder / SENT, _Said)
        except (FileNotFoundError, DiffctlError):
            return nothing  # what is sent again changes nothing
        known = (said.store, said.key) == (nothing.store, nothing.key)
        return cls(folder, **said.model_dump()) if known else nothing

    def save(self) -> None:
        """Write `sent.json`."""
        write_json(self.folder / SENT, add_checksum({k: v for k, v in vars(self).items() if k != "folder"}))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do: every whole line was delivered, or the run was deleted."""
        return self.deleted or next(read_lines(self.folder, self.offset), None) is None


@dataclasses.dataclass(frozen=True)
class DeliveryReport:
    """What one delivery did: how many points were sent and how many entries set aside."""

    points: int
    rejected: int

    def __str__(self) -> str:
        aside = f", {self.rejected} entries set aside in {REJECTED}" if self.rejected else ""
        return (
            f"{self.points:,} points delivered{aside}" if self.points or aside else "all of it is in MLflow"
        )


def deliver(folder: Path, uri: str) -> DeliveryReport:
    """Deliver every whole line that the store at `uri` does not have. The caller holds the sender's lock.

    A run that is gone with its whole store is made again. MlflowError when MLflow cannot take it now: what
    was delivered stays delivered. RunDeleted when someone deleted the run.
    """
    with translate_errors(uri):
        return _Delivery(DeliveryState.load(folder, uri), connect(uri)).run()


def _store_seen_from(folder: Path, uri: str) -> str:
    """The store as `sent.json` names it: a database in a folder above by its way from here.

    So a project that was copied or moved, its database with it, still knows what it holds.
    """
    database, here = database_file(uri), folder.resolve()
    if database is None or database.resolve().parent not in here.parents:
        return redact_uri(uri)
    return f"sqlite:///{os.path.relpath(database.resolve(), here)}"


def mark_killed(folder: Path, uri: str) -> bool:
    """Give the run of a dead training the status KILLED; False when it is not dead or not delivered.

    The caller holds the sender's lock, so a new start of the training is delivered after this.
    """
    training, sent = read_status(folder), DeliveryState.load(folder, uri)
    if training is None or training.state != "dead" or sent.run_id is None or not sent.complete:
        return False
    with translate_errors(uri):
        client = connect(uri)
        if client.get_run(sent.run_id).info.status == "KILLED":
            return False
        client.set_terminated(sent.run_id, "KILLED", end_time=training.updated)
    return True


class _Delivery:
    """One pass over what has not been sent."""

    def __init__(self, sent: DeliveryState, client: "MlflowClient") -> None:
        self.sent, self.client = sent, client
        self.folder = sent.folder
        self.waiting: list[Metric] = []
        self.points = self.rejected = 0

    @property
    def run_id(self) -> str:
        """The run."""
        assert self.sent.run_id is not None, "it is made before anything is sent"
        return self.sent.run_id

    def run(self) -> DeliveryReport:
        """Send everything, points together in large requests."""
        self._check_run()
        offset = self.sent.offset
        for event, end in read_lines(self.folder, offset):
            self._ensure_run()
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
        return DeliveryReport(self.points, self.rejected)

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
            self.sent = DeliveryState(self.folder, self.sent.store, self.sent.key)
            return
        self.sent.deleted = stage == "deleted"
        if self.sent.deleted:
            self.sent.save()
            raise RunDeleted(
                f"run {self.sent.run_id} ({self.folder}) was deleted in MLflow: it gets no more entries"
            )

    def _ensure_run(self) -> None:
        """Make the run that the spool's first whole start names; MlflowError where none is whole."""
        if self.sent.run_id is None:
            start = next((event for event in read_events(self.folder) if event["kind"] == "start"), None)
            if start is None:
                raise MlflowError(
                    f"{self.folder / EVENTS} is damaged: no line in it says whose metrics they are"
                )
            self._start(start)

    def _flush(self, offset: int) -> None:
        if self.waiting:
            self._log("metrics", self.waiting, POINTS)
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

        self._log("params", [Param(*entry) for entry in event["values"].items()], ENTRIES)

    def _tags(self, event: Event) -> None:
        from mlflow.entities import RunTag

        self._log("tags", [RunTag(*entry) for entry in event["values"].items()], ENTRIES)
        if SEARCH_KEY in event["values"]:
            join_search(self.client, self.run_id, event["values"][SEARCH_KEY], self.folder.parent)

    def _dataset(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        source = json.dumps({"tags": {"digest": event["digest"], "classes": event["classes"]}})
        dataset = Dataset(event["name"], event["digest"][:DIGEST_LENGTH], "code", source)
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        try:
            self.client.log_inputs(self.run_id, inputs)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            # MLflow looks for the dataset, then makes it: another training of the same data did in between.
            self.client.log_inputs(self.run_id, inputs)

    def _image(self, event: Event) -> None:
        from PIL import Image

        def log() -> None:
            with Image.open(self.folder / event["path"]) as picture:
                self.client.log_image(
                    self.run_id,
                    picture,
                    key=event["key"],
                    step=event["step"],
                    timestamp=event["time"],
                    synchronous=True,
                )

        self._upload(event, log)

    def _artifact(self, event: Event) -> None:
        path = self.folder / event["path"]

        def log() -> None:
            if sha256_file(path) != event["sha256"]:
                raise DiffctlError(f"{path} changed since it was logged")
            self.client.log_artifact(self.run_id, str(path), event["folder"] or None)
            if event["folder"] == MODEL_FOLDER:
                self.client.set_tag(self.run_id, FILE_SHA256, event["sha256"])

        self._upload(event, log)

    def _checkpoint(self, event: Event) -> None:
        """The step's weights as a LoggedModel with its scores; nothing where the file is gone by now."""
        path = self.folder / event["path"]
        if not path.exists():
            return

        def log() -> None:
            model_id = ensure_checkpoint(self.client, self.run_id, event["step"], path)
            self.client.log_batch(self.run_id, metrics=_metrics(event, model_id))

        self._upload(event, log)

    def _status(self, event: Event) -> None:
        self.client.set_terminated(self.run_id, event["status"], end_time=event["time"])

    def _log(self, kind: str, entries: Sequence[Any], limit: int) -> None:
        """Log metrics, params or tags in requests of at most `limit`; halve a refused one until it is one."""
        from mlflow.exceptions import MlflowException

        for start in range(0, len(entries), limit):
            some = entries[start : start + limit]
            request: dict[str, Any] = {kind: some}
            try:
                self.client.log_batch(self.run_id, **request)
            except MlflowException as error:
                if error.error_code not in REFUSALS:
                    raise
                if len(some) == 1:
                    self._reject(dict(some[0]), error)
                else:
                    self._log(kind, some, len(some) // 2)

    def _upload(self, event: Event, upload: Callable[[], None]) -> None:
        """Upload the event's file; what fails again and again is set aside."""
        try:
            upload()
        except Exception as error:  # every kind of artifact store raises its own
            if is_disk_full(error):  # which passes, and is not the file's fault
                raise
            self.client.get_run(self.run_id)  # nor is an outage of the server itself
            self.sent.tries += 1
            if self.sent.tries < UPLOAD_TRIES:
                self.sent.save()
                raise MlflowError(f"{event['path']} cannot be stored in MLflow: {error}") from error
            self._reject(event, error)

    def _reject(self, entry: Any, error: Exception) -> None:
        with open(self.folder / REJECTED, "a", encoding="utf-8") as file:
            file.write(json.dumps({"entry": entry, "reason": reason(error)}) + "\n")
        self.rejected += 1


def _metrics(event: Event, model_id: str | None = None) -> "list[Metric]":
    """The event's points, those of a LoggedModel where it is named."""
    from mlflow.entities import Metric

    time, step = event["time"], event["step"]
    return [Metric(key, float(value), time, step, model_id) for key, value in event["values"].items()]
