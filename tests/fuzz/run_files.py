"""Files of runs: image stores, and small files of trainings, stages, searches and servers."""

import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np

from diffusion.data.journal import SplitTarget, _read_journal
from diffusion.images import store
from diffusion.images.store_meta import CellMeta, PreparedMeta, StoreMeta
from diffusion.search.search_dir import ABOUT, RESULT, About, read_result
from diffusion.system.checksums import add_checksum, read_checksummed_json
from diffusion.system.errors import DiffctlError
from diffusion.system.json_files import read_json
from diffusion.train.checkpoint.resume import find_kept_run
from diffusion.train.checkpoint.run_record import HEARTBEAT, read_heartbeat
from flows.prefect_server.local_servers import LocalServer
from flows.stage_outcome import read_outcome
from tests.fuzz.parser import Parser, as_json, correct_checksum, npy
from tracking.runs.run_lookup import read_identity
from tracking.spool.spool_events import CHECKSUM, EVENTS
from tracking.spool.spool_status import DeliveryState, read_status
from tracking.spool.spool_writer import Spool, SpoolIndex

# Folders of one meta.json and arrays: the input is one of the files
COUNT = 3
STORED = {"count": COUNT, "digest": "d" * 64, "name": "digits", "classes": ["0", "1"]}
STORES = [
    {**STORED, "card": {"steps": 3, "eta": 0.5, "clip": True, "noise": "small", "none": None}},
    {
        **STORED, "split": "train", "counts": [2, 1], "image_size": 2, "channels": 1, "options": {},
        "sources": {"a": "b"},
    },
]  # fmt: skip


@cache
def store_seeds() -> list[bytes]:
    """Return meta.json of a cell and of a split, images and labels."""
    arrays = npy(np.zeros((COUNT, 2, 2, 1), np.uint8)), npy(np.array([0, 0, 1]))
    return [*as_json(*map(add_checksum, STORES)), *arrays]


def read_store(path: Path) -> None:
    """Open an image store with the input as one of its files."""
    data, folder = path.read_bytes(), path.parent / "store"
    meta, _, images, labels = store_seeds()
    place = "meta.json" if data[:1] != b"\x93" else "labels.npy" if b"<i8" in data[:128] else "images.npy"
    _write(folder, {"meta.json": meta, "images.npy": images, "labels.npy": labels, place: data})
    with patch.object(store, "verify"):  # the digest is not what is tried here
        opened = store.open_store(folder, StoreMeta)
        if place == "meta.json":
            _first_success(
                *(lambda kind=kind: store.open_store(folder, kind) for kind in (CellMeta, PreparedMeta))
            )
    assert len(np.array(opened.images)) == COUNT


def _write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


# Small files of trainings, stages, searches and servers
CHECKSUMMED = (
    {"key": "k", "pid": 5, "step": 3, "heartbeat": 1.5},
    {"key": "k", "fingerprint": "ab"},
    {"store": "s", "key": "k", "run_id": None, "offset": 0, "tries": 0, "deleted": False},
    {"key": "k", "data_digest": "d", "settings": {"train": {"steps": 3}}, "search": {"fields": {}}},
    {"state": "failed", "value": None, "reason": "it diverged"},
    {"start": 0, "bad": {"3": "no image"}, "digests": sha256(b"\0" * 64).hexdigest()},
)  # fmt: skip
PLAIN = (
    {"kind": "failed", "sentence": "it failed", "exit_code": 1},
    {"name": "mlflow", "pid": 1234, "start": "0a1b-2c3d 64768", "port": 5000},
)


@cache
def run_seeds() -> list[bytes]:
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
        return [(folder / EVENTS).read_bytes(), *as_json(*PLAIN, *map(add_checksum, CHECKSUMMED))]


def correct_lines(data: bytes) -> bytes:
    """Correct the checksums of a spool's lines, or of a JSON object."""
    if b'"crc"' not in data:
        return correct_checksum(data)
    lines = [line.rpartition(CHECKSUM[:8])[0] for line in data.splitlines()]
    return b"".join(line + CHECKSUM % zlib.crc32(line) for line in lines if line)


def read_run_file(path: Path) -> None:
    """Read it as each of them."""
    data, folder = path.read_bytes(), path.parent / "training"
    names = (EVENTS, HEARTBEAT, "sent.json", "config.json", "run.json", ABOUT, RESULT, "journal.jsonl")
    _write(folder, {**dict.fromkeys(names, data), "digests": b"\0" * 64})
    SpoolIndex.of(folder), DeliveryState.load(folder, "sqlite:///x")
    _first_success(
        lambda: _read_journal(SplitTarget(folder, (1, 8, 8, 1))) or None,
        lambda: read_status(folder),
        lambda: read_heartbeat(folder),
        lambda: read_identity(path),
        lambda: find_kept_run(path.parent / "x", {}),
        lambda: read_outcome(path),
        lambda: read_checksummed_json(path, DeliveryState),
        lambda: read_checksummed_json(folder / ABOUT, About),
        lambda: read_json(path, LocalServer),
        lambda: read_result(folder),
    )


def _first_success(*reads: Callable[[], object]) -> None:
    """Try all reads; raise DiffctlError if none returns something."""
    successes = 0
    for read in reads:
        with suppress(DiffctlError):
            successes += read() is not None
    if not successes:
        raise DiffctlError("it is none of these files")


PARSERS = {
    "store": Parser(store_seeds, read_store, repair=correct_checksum),
    "run_files": Parser(run_seeds, read_run_file, repair=correct_lines),
}
