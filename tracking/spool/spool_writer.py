"""The spool: what a training would log, written to a local file first, so that no server can stop it.

`events.jsonl` is append-only, a JSON object a line, with the original step and time (milliseconds since
1970), which never goes back. The sender delivers it. Nothing here imports mlflow or waits for a network.

    {"kind": "start", "time": …, "key": …, "name": …, "experiment": …}     at every opening
    {"kind": "params" | "tags", "values": {…}}
    {"kind": "dataset", "name": …, "digest": …, "classes": […]}
    {"kind": "metrics", "time": …, "step": …, "values": {…}}
    {"kind": "image", "time": …, "step": …, "key": …, "path": …}           paths are below the folder
    {"kind": "artifact", "path": …, "folder": …, "sha256": …}
    {"kind": "checkpoint", "time": …, "step": …, "path": …, "values": {…}}  weights, and what they scored
    {"kind": "dropped", "step": …}                                          of a checkpoint that was not kept
    {"kind": "status", "time": …, "status": "FINISHED" | "FAILED" | "KILLED"}

Every line ends in `"crc"`, a checksum of what stands before it; a line without a right one is damaged.
"""

import json
import math
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion.system.errors import DiffctlError, DiffctlWarning
from diffusion.system.files import sha256_file, sync_folder
from diffusion.train.config_diff import flat
from tracking.spool.spool_events import Event, parse_event

EVENTS = "events.jsonl"
CHECKSUM = b',"crc":"%08x"}\n'
TAIL = 2**16  # bytes that are read at a time to find the last line
OUTBOX = "outbox"  # files that are to become artifacts, kept as they were when they were logged


class Spool:
    """An open spool. Opening drops a torn last line and learns what is there: a replay writes nothing twice.

    Satisfies the training's observer. Not for two processes at once: the training's own lock sees to that.
    """

    def __init__(self, folder: Path, key: str, name: str, experiment: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / EVENTS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._end = _drop_torn_line(self._file)
        sync_folder(folder)
        self._waiting = b""
        self._known = SpoolIndex.of(folder)
        self._append(kind="start", time=self._now(), key=key, name=name, experiment=experiment)

    def params(self, values: dict[str, Any]) -> None:
        """Log the configuration; nested names are joined by dots. The first value of a name stays."""
        new = {key: value for key, value in flatten(values).items() if key not in self._known.params}
        self._known.params |= new
        if new:
            self._append(kind="params", values=new)

    def tags(self, values: dict[str, Any]) -> None:
        """Log tags; a name's newest value counts."""
        new = {key: str(value) for key, value in values.items() if self._known.tags.get(key) != str(value)}
        self._known.tags |= new
        if new:
            self._append(kind="tags", values=new)

    def dataset(self, name: str, digest: str, classes: Sequence[str] = ()) -> None:
        """Log the data set that is trained on."""
        if digest not in self._known.datasets:
            self._known.datasets.add(digest)
            self._append(kind="dataset", name=name, digest=digest, classes=list(classes))

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Log the values after `step` steps, those of steps that are there already left out."""
        self._metrics(self._now(), step, values)

    def _metrics(self, time: int, step: int, values: dict[str, float]) -> None:
        new = {
            key: _plain(value) for key, value in values.items() if self._known.is_new(f"metric {key}", step)
        }
        if new:
            self._append(kind="metrics", time=time, step=step, values=new)

    def image(self, step: int, key: str, path: Path) -> None:
        """Log a picture that stays at `path`, as the series `key`."""
        if self._known.is_new(f"image {key}", step):
            inside = os.path.relpath(path, self.folder)
            self._append(kind="image", time=self._now(), step=step, key=key, path=inside)

    def checkpoint(self, step: int, path: Path | None, values: dict[str, float]) -> None:
        """Log what the weights after `step` steps scored, and the weights too where they lie at `path`."""
        now = self._now()
        self._metrics(now, step, values)
        if path is not None and self._known.is_new("checkpoint", step):
            inside, plain = os.path.relpath(path, self.folder), {k: _plain(v) for k, v in values.items()}
            self._append(kind="checkpoint", time=now, step=step, path=inside, values=plain)

    def dropped(self, step: int) -> None:
        """Log that the checkpoint of that step is not kept any more."""
        if step not in self._known.dropped:
            self._known.dropped.add(step)
            self._append(kind="dropped", step=step)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Log a file, as it is now, into the run's artifact `folder`; a hard link keeps it where one can."""
        sha256 = sha256_file(path)
        kept = Path(OUTBOX) / sha256[:16] / path.name
        if str(kept) in self._known.artifacts:
            return
        _keep(path, self.folder / kept)
        self._known.artifacts.add(str(kept))
        self._append(kind="artifact", path=str(kept), folder=folder, sha256=sha256)

    def sync(self) -> None:
        """Bring all of it to the disk, where a power cut leaves it; DiffctlError if there is no room.

        Called before a state is saved: what that state will not replay must be here.
        """
        try:
            if self._waiting:
                self._write()
            os.fsync(self._file)
        except OSError as error:
            raise DiffctlError(
                f"the last metrics cannot be written to {self.folder / EVENTS} ({error.strerror}): make room "
                "and run it again"
            ) from error

    def close(self, status: str) -> None:
        """Log how the training ended (FINISHED, FAILED or KILLED); DiffctlError if the disk is still full."""
        self._append(kind="status", time=self._now(), status=status)
        try:
            self.sync()
        finally:
            os.close(self._file)

    def _now(self) -> int:
        """Milliseconds since 1970, never less than what stands in the spool: a clock may be set back."""
        self._known.time = max(self._known.time, time.time_ns() // 1_000_000)
        return self._known.time

    def _append(self, **event: Any) -> None:
        self._waiting += _line(event)
        try:
            self._write()
        except OSError as error:
            # Never half a line in the middle: it stays in memory and goes out with the next one.
            warnings.warn(
                f"{self.folder / EVENTS} cannot be written ({error.strerror}): it is tried again",
                DiffctlWarning,
                stacklevel=3,
            )

    def _write(self) -> None:
        try:
            written = os.write(self._file, self._waiting)
            if written < len(self._waiting):
                written += os.write(self._file, self._waiting[written:])
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += written
        self._waiting = b""


@dataclass
class SpoolIndex:
    """What a spool holds already."""

    steps: dict[str, int] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: set[str] = field(default_factory=set)
    artifacts: set[str] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    time: int = 0  # of the last event, milliseconds since 1970

    @classmethod
    def of(cls, folder: Path) -> "SpoolIndex":
        """What the folder's spool holds."""
        known = cls()
        for event in read_events(folder):
            known._learn(event)
        return known

    def is_new(self, series: str, step: int) -> bool:
        """Whether the series has not reached `step` yet; it has from now on."""
        if self.steps.get(series, -1) >= step:
            return False
        self.steps[series] = step
        return True

    def _learn(self, event: Event) -> None:
        self.time = max(self.time, event.get("time", 0))
        match event["kind"]:
            case "metrics":
                self.steps |= {f"metric {key}": event["step"] for key in event["values"]}
            case "image":
                self.steps[f"image {event['key']}"] = event["step"]
            case "params":
                self.params |= event["values"]
            case "tags":
                self.tags |= event["values"]
            case "dataset":
                self.datasets.add(event["digest"])
            case "artifact":
                self.artifacts.add(event["path"])
            case "checkpoint":
                self.steps["checkpoint"] = event["step"]
            case "dropped":
                self.dropped.add(event["step"])


def read_events(folder: Path) -> Iterator[Event]:
    """Every whole event in order; none where there is no spool."""
    return (event for event, _ in read_lines(folder) if event is not None)


def read_lines(folder: Path, offset: int = 0) -> Iterator[tuple[Event | None, int]]:
    """Each whole line from `offset` on with the offset after it; None stands for a damaged line."""
    try:
        file = open(folder / EVENTS, "rb")  # noqa: SIM115 (closed below; a missing file is no spool)
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield _parse(line), offset


def _line(event: Event) -> bytes:
    said = json.dumps(event, separators=(",", ":"), allow_nan=False).encode()[:-1]
    return said + CHECKSUM % zlib.crc32(said)


def _parse(line: bytes) -> Event | None:
    """The event of a line; None unless its checksum is that of the rest, and that is an entry."""
    said, _, _ = line.rpartition(CHECKSUM[:8])
    if line != said + CHECKSUM % zlib.crc32(said):
        return None
    return parse_event(said + b"}")


def flatten(values: dict[str, Any]) -> dict[str, str]:
    """Nested values as flat text: names joined by dots, lists as JSON; what is None is left out."""
    return {
        name: json.dumps(value) if isinstance(value, list | tuple) else str(value)
        for name, value in flat(values).items()
        if value is not None
    }


def _plain(value: float) -> float | str:
    """A float that JSON knows, or the name of one that it does not; float() reads both back."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _drop_torn_line(handle: int) -> int:
    """Cut what a killed writer left of its last line; returns the spool's length in bytes."""
    size = end = os.fstat(handle).st_size
    while end:
        start = max(0, end - TAIL)
        newline = os.pread(handle, end - start, start).rfind(b"\n")
        end = start + newline + 1
        if newline >= 0:
            break
    if end < size:
        os.ftruncate(handle, end)
    return end


def _keep(path: Path, kept: Path) -> None:
    """Keep the file's content: later versions are renamed into its place, so a hard link is enough."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.unlink(missing_ok=True)
    try:
        os.link(path, kept)
    except OSError:  # another file system, or one without hard links
        try:
            shutil.copyfile(path, kept)
        except OSError as error:
            raise DiffctlError(f"{path} cannot be kept for MLflow at {kept} ({error.strerror})") from error
