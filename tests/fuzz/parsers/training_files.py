"""The small files of a training and a stage: spool, heartbeat, what was sent, outcome, identity, journal."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from diffusion.data.writing.blocks import _read_journal
from diffusion.system.errors import DiffctlError
from diffusion.train.heartbeat import BEAT, read_heartbeat
from diffusion.train.run_folder import kept_by
from flows.outcome import read_outcome
from tracking.delivery import Sent
from tracking.lookup import read_identity
from tracking.spool import EVENTS, Known, Spool
from tracking.trainings import read_training

SMALL = (
    b'{"kind": "failed", "sentence": "it failed", "exit_code": 1}',
    b'{"key": "k", "pid": 5, "step": 3, "heartbeat": 1.5}',
    b'{"key": "k", "fingerprint": "ab"}',
    b'{"store": "s", "key": "k", "run_id": null, "offset": 0, "tries": 0, "deleted": false}',
    b'{"start": 0, "bad": {"3": "no image"}}\n{"start": 4, "bad": {}}\n',
)


@cache
def seeds() -> list[bytes]:
    """A whole spool, and one of each of the others."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.png").write_bytes(b"picture")
        spool = Spool(folder, "key", "name", "experiment")
        spool.params({"train": {"steps": 10}})
        spool.tags({"a": "b"})
        spool.dataset("digits", "d" * 64, ["0", "1"])
        spool.metrics(1, {"loss": 0.5, "other": float("nan")})
        spool.image(1, "preview", folder / "a.png")
        spool.checkpoint(1, folder / "a.png", {"kid": 0.1})
        spool.dropped(1)
        spool.artifact(folder / "a.png", "model")
        spool.close("FINISHED")
        return [(folder / EVENTS).read_bytes(), *SMALL]


def parse(path: Path) -> None:
    """Read it as each of them."""
    data, folder = path.read_bytes(), path.parent / "training"
    folder.mkdir()
    for name in (EVENTS, BEAT, "sent.json", "config.json", "run.json"):
        (folder / name).write_bytes(data)
    Known.of(folder), Sent.load(folder, "sqlite:///x")
    reads = (
        lambda: read_training(folder),
        lambda: _read_journal(path) or None,
        lambda: read_heartbeat(folder),
        lambda: read_identity(path),
        lambda: kept_by(path.parent / "x", {}),
        lambda: read_outcome(path),
    )
    refused = [refusal for read in reads if (refusal := _refusal(read))]
    if len(refused) == len(reads):
        raise refused[0]


def _refusal(read: Callable[[], object]) -> DiffctlError | None:
    try:
        return None if read() is not None else DiffctlError("it says nothing")
    except DiffctlError as error:
        return error
