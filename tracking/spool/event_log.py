"""The spool: a training logs to a local file first, so that no server can stop it.

Each line of `events.jsonl` is a JSON object with the original step and time (milliseconds since 1970). It
ends in `"crc"`, a CRC-32 of everything before it; a line with another one is damaged. Lines are appended;
their times never decrease, except that a checkpoint has the time of its scores. Nothing here imports mlflow
or waits for a network.
"""

import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffusion.system.errors import DiffctlError, DiffctlWarning
from diffusion.system.files import sha256_file, sync_path
from diffusion.system.params import flatten_fields
from tracking.spool.events import (
    AnyEvent,
    Artifact,
    Checkpoint,
    Dataset,
    Dropped,
    End,
    EndStatus,
    Event,
    Params,
    Picture,
    Points,
    Start,
    Tags,
    decode_event,
    encode_event,
)

EVENTS = "events.jsonl"
OUTBOX = "outbox"  # copies of the files that become artifacts, as they were when they were logged


def read_events(folder: Path) -> Iterator[AnyEvent]:
    """Yield every undamaged event in order; none if there is no spool."""
    return (event for event, _ in read_lines(folder) if event is not None)


def read_lines(
    folder: Path, offset: int = 0, *, durable: bool = False
) -> Iterator[tuple[AnyEvent | None, int]]:
    """Yield each complete line from byte `offset` on with the offset after it; None for a damaged line.

    With `durable` only the lines that are on the disk, after an fsync: a power cut takes none of them back.
    """
    with suppress(FileNotFoundError), open(folder / EVENTS, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if durable:
            os.fsync(file.fileno())
        file.seek(offset)
        for line in file:
            offset += len(line)
            if not line.endswith(b"\n") or (durable and offset > size):
                return
            yield decode_event(line), offset


def ends_line(folder: Path, offset: int) -> bool:
    """Return whether a complete line ends before byte `offset`, or the offset is 0."""
    with suppress(FileNotFoundError), open(folder / EVENTS, "rb") as file:
        file.seek(max(offset - 1, 0))
        return offset == 0 or file.read(1) == b"\n"
    return offset == 0


class Spool:
    """An open spool. Opening it reads what it contains, so that a replay writes nothing twice.

    The training's own lock keeps a second process out.
    """

    def __init__(self, folder: Path, key: str, name: str, experiment: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / EVENTS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._read()
        os.ftruncate(self._file, self._end)
        sync_path(folder)
        self._unwritten = b""
        self._append(Start(time=self._now(), key=key, name=name, experiment=experiment))

    def _read(self) -> None:
        """Read what the spool contains already."""
        self._times: dict[str, dict[int, int]] = {}  # of the points of each series, by their steps
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._once: list[Event] = []  # events that are written once
        self._time = 0  # of the last event, milliseconds since 1970
        self._end = 0  # bytes, without an incomplete last line of a killed writer
        for event, end in read_lines(self.folder):
            self._end = end
            if event is None:
                continue
            self._time = max(self._time, getattr(event, "time", 0))
            match event:
                case Points():
                    for key in event.values:
                        self._add_point(f"metric {key}", event.step, event.time)
                case Picture():
                    self._add_point(f"image {event.key}", event.step, event.time)
                case Checkpoint():
                    self._add_point("checkpoint", event.step, event.time)
                case Params():
                    self._params |= event.values
                case Tags():
                    self._tags |= event.values
                case Dataset() | Artifact() | Dropped():
                    self._once.append(event)

    def params(self, values: dict[str, Any]) -> None:
        """Log the configuration, with nested names joined by dots; the first value of a name is kept."""
        new = {key: value for key, value in flatten(values).items() if key not in self._params}
        self._params |= new
        if new:
            self._append(Params(values=new))

    def tags(self, values: dict[str, Any]) -> None:
        """Log tags; the newest value of a name is valid."""
        new = {key: str(value) for key, value in values.items() if self._tags.get(key) != str(value)}
        self._tags |= new
        if new:
            self._append(Tags(values=new))

    def dataset(self, name: str, digest: str, classes: Sequence[str] = ()) -> None:
        """Log the training's data set."""
        self._append_once(Dataset(name=name, digest=digest, classes=list(classes)))

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Log the values after `step` steps, except those that are logged already."""
        time = self._now()
        new = {key: value for key, value in values.items() if self._add_point(f"metric {key}", step, time)}
        if new:
            self._append(Points(time=time, step=step, values=new))

    def result(self, values: dict[str, float]) -> None:
        """Log values of the training as a whole, at step 0 as `log_scores`; the newest are valid."""
        self._append(Points(time=self._now(), step=0, values=values))

    def image(self, step: int, key: str, path: Path) -> None:
        """Log a picture that stays at `path`, in the series `key`."""
        time = self._now()
        if self._add_point(f"image {key}", step, time):
            place = os.path.relpath(path, self.folder)
            self._append(Picture(time=time, step=step, key=key, path=place))

    def checkpoint(self, step: int, path: Path | None, values: dict[str, float]) -> None:
        """Log the scores of the weights after `step` steps, and the weights if they are kept at `path`."""
        self.metrics(step, values)
        times = [self._times[f"metric {key}"][step] for key in values]
        time = min(times, default=self._time)  # of the scores as points of the run, also before a resume
        if path is not None and self._add_point("checkpoint", step, time):
            place = os.path.relpath(path, self.folder)
            self._append(Checkpoint(time=time, step=step, path=place, values=values))

    def dropped(self, step: int) -> None:
        """Log that the checkpoint of that step was deleted."""
        self._append_once(Dropped(step=step))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Log the file's present content into the run's artifact `folder`, by a hard link or a copy."""
        sha256 = sha256_file(path)
        kept = Path(OUTBOX) / sha256[:16] / path.name
        event = Artifact(path=str(kept), folder=folder, sha256=sha256)
        if event not in self._once:
            copy = self.folder / kept
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.unlink(missing_ok=True)
            try:
                os.link(path, copy)  # enough, because later versions replace the file by renaming
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(path, copy)
            self._append_once(event)

    def sync(self) -> None:
        """Write and fsync all events, before a state is saved; DiffctlError if there is no room."""
        try:
            if self._unwritten:
                self._write()
            os.fsync(self._file)
        except OSError as error:
            text = f"{self.folder / EVENTS} cannot be written ({error.strerror}): make room and run it again"
            raise DiffctlError(text) from error

    def close(self, status: EndStatus) -> None:
        """Log the training's end (FINISHED, FAILED or KILLED); DiffctlError if the disk is still full."""
        self._append(End(time=self._now(), status=status))
        try:
            self.sync()
        finally:
            os.close(self._file)

    def _now(self) -> int:
        """Return milliseconds since 1970, at least the last event's time: a clock may be set back."""
        self._time = max(self._time, time.time_ns() // 1_000_000)
        return self._time

    def _add_point(self, series: str, step: int, time: int) -> bool:
        """Record the point's time; return False if the series has a point of this step already."""
        times = self._times.setdefault(series, {})
        is_new = step not in times
        times.setdefault(step, time)
        return is_new

    def _append_once(self, event: Event) -> None:
        if event not in self._once:
            self._once.append(event)
            self._append(event)

    def _append(self, event: Event) -> None:
        self._unwritten += encode_event(event)
        try:
            self._write()
        except OSError as error:
            # The file never has half a line in the middle: the event is written with the next one.
            text = f"{self.folder / EVENTS} cannot be written ({error.strerror}): it is tried again"
            warnings.warn(text, DiffctlWarning, stacklevel=3)

    def _write(self) -> None:
        written = 0
        try:
            while written < len(self._unwritten):
                written += os.write(self._file, self._unwritten[written:])
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += written
        self._unwritten = b""


def end_discarded(folder: Path) -> None:
    """Log KILLED as the end of killed trainings of `folder` that `--fresh` has discarded."""
    for log in folder.parent.glob(f"{folder.name}-*/{EVENTS}"):
        events = [event for event in read_events(log.parent) if isinstance(event, Start | End)]
        if events and isinstance(start := events[-1], Start):
            Spool(log.parent, start.key, start.name, start.experiment).close("KILLED")


def flatten(values: dict[str, Any]) -> dict[str, str]:
    """Return nested values as texts: names joined by dots, lists as JSON, without those that are None."""
    return {
        name: json.dumps(value) if isinstance(value, list | tuple) else str(value)
        for name, value in flatten_fields(values).items()
        if value is not None
    }
