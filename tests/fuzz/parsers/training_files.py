"""Small files of trainings, stages and searches: spool, heartbeat, outcome, identity, journal."""

import json
import zlib
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from diffusion.data.journal import SplitTarget, _read_journal
from diffusion.search.search_dir import ABOUT, RESULT, About, read_result
from diffusion.system.checksums import add_checksum, read_checksummed_json
from diffusion.system.errors import DiffctlError
from diffusion.train.checkpoint.resume import find_kept_run
from diffusion.train.checkpoint.run_record import HEARTBEAT, read_heartbeat
from flows.stage_outcome import read_outcome
from tests.fuzz.repairs import correct_checksum
from tracking.runs.run_lookup import read_identity
from tracking.spool.delivery_state import DeliveryState, _SentFile
from tracking.spool.spool_events import CHECKSUM, EVENTS
from tracking.spool.spool_writer import Spool, SpoolIndex
from tracking.spool.training_status import read_status

SEALED = (
    {"key": "k", "pid": 5, "step": 3, "heartbeat": 1.5},
    {"key": "k", "fingerprint": "ab"},
    {"store": "s", "key": "k", "run_id": None, "offset": 0, "tries": 0, "deleted": False},
    {"key": "k", "data_digest": "d", "settings": {"train": {"steps": 3}}, "search": {"fields": {}}},
    {"state": "failed", "value": None, "reason": "it diverged"},
    {"start": 0, "bad": {"3": "no image"}, "digests": sha256(b"\0" * 64).hexdigest()},
)
OUTCOME = b'{"kind": "failed", "sentence": "it failed", "exit_code": 1}'


@cache
def seeds() -> list[bytes]:
    """Return a complete spool, and one of each other file."""
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
        return [
            (folder / EVENTS).read_bytes(),
            OUTCOME,
            *(json.dumps(add_checksum(one)).encode() for one in SEALED),
        ]


def repair(data: bytes) -> bytes:
    """Correct the checksums of a spool's lines, or of a JSON object."""
    if b'"crc"' not in data:
        return correct_checksum(data)
    lines = [line.rpartition(CHECKSUM[:8])[0] for line in data.splitlines()]
    return b"".join(line + CHECKSUM % zlib.crc32(line) for line in lines if line)


def parse(path: Path) -> None:
    """Read it as each of them."""
    data, folder = path.read_bytes(), path.parent / "training"
    folder.mkdir()
    for name in (EVENTS, HEARTBEAT, "sent.json", "config.json", "run.json", ABOUT, RESULT):
        (folder / name).write_bytes(data)
    (folder / "digests").write_bytes(b"\0" * 64)
    (folder / "journal.jsonl").write_bytes(data)
    SpoolIndex.of(folder), DeliveryState.load(folder, "sqlite:///x")
    reads = (
        lambda: _read_journal(SplitTarget(folder, (1, 8, 8, 1))) or None,
        lambda: read_status(folder),
        lambda: read_heartbeat(folder),
        lambda: read_identity(path),
        lambda: find_kept_run(path.parent / "x", {}),
        lambda: read_outcome(path),
        lambda: read_checksummed_json(path, _SentFile),
        lambda: read_checksummed_json(folder / ABOUT, About),
        lambda: read_result(folder),
    )
    refused = [refusal for read in reads if (refusal := _refusal(read))]
    if len(refused) == len(reads):
        raise refused[0]


def _refusal(read: Callable[[], object]) -> DiffctlError | None:
    try:
        return None if read() is not None else DiffctlError("it expected nothing")
    except DiffctlError as error:
        return error
