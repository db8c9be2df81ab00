"""Fill a split's store in several processes, with a journal that lets a killed run resume.

Rows are read in blocks. A worker reads a block and writes it at its place in `images.npy`; then the journal
marks the block as done. Memory holds a few blocks, whatever the size of the set.
"""

import os
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from pydantic import NonNegativeInt

from diffusion.data.readers.image_files import conform
from diffusion.data.source import Job, Reader
from diffusion.images.store import npy_header, row_digests
from diffusion.system.checksums import Corrupted, JsonObject, add_checksum, parse_json, strip_checksum
from diffusion.system.errors import DiffctlError
from diffusion.system.files import disk_errors, sync_path
from diffusion.system.processes import map_in_processes
from diffusion.system.section import Section, canonical_json, validate

BLOCK_BYTES = 3 << 19  # fits in a core's cache, so that hashing and writing are faster
BLOCK_ROWS = 256
COMMIT_SECONDS = 1.0  # of work that a kill may lose


@dataclass(frozen=True)
class SplitTarget:
    """A split in preparation: its folder, and the shape (N, H, W, C) of its images."""

    folder: Path
    shape: tuple[int, int, int, int]

    @property
    def images(self) -> Path:
        """The images, an .npy file of the final size from the start."""
        return self.folder / "images.npy"

    @property
    def digests(self) -> Path:
        """64 bytes a row: the SHA-256 of its pixels, then of its raw file (zeros if there is none)."""
        return self.folder / "digests"

    @property
    def journal(self) -> Path:
        """A checksummed JSON line per finished block: first row, bad rows, digest of its digests."""
        return self.folder / "journal.jsonl"

    @property
    def block(self) -> int:
        """Rows per block, about a megabyte."""
        return min(BLOCK_ROWS, max(1, BLOCK_BYTES // self.row_bytes))

    def rows(self, start: int) -> range:
        """Return the rows of the block that begins at `start`."""
        return range(start, min(start + self.block, self.shape[0]))

    @property
    def row_bytes(self) -> int:
        """Bytes of one image."""
        return self.shape[1] * self.shape[2] * self.shape[3]

    @property
    def header(self) -> bytes:
        """The bytes before the first image."""
        return npy_header(self.shape)

    def is_laid_out(self) -> bool:
        """Return whether images and digests have their final sizes, and images their header."""
        size = len(self.header) + self.shape[0] * self.row_bytes
        try:
            with open(self.images, "rb") as file:
                begins = file.read(len(self.header)) == self.header
            sizes = self.images.stat().st_size, self.digests.stat().st_size
            return begins and sizes == (size, self.shape[0] * 64)
        except OSError:
            return False


def fill_split(reader: Reader, target: SplitTarget, done: Callable[[int], None]) -> dict[int, str]:
    """Write all rows of the reader; return the bad rows, which hold zeros, with reasons.

    `done` receives the number of further finished images. DiffctlError if the disk is full or a worker dies;
    finished blocks stay for the next try, except those that are not final.
    """
    finished = _start(target)
    starts = range(0, target.shape[0], target.block)
    left = [target.rows(start) for start in starts if start not in finished]
    done(target.shape[0] - sum(map(len, left)))
    jobs = ((reader.job(rows.start, rows.stop), target, rows.start) for rows in left)
    many = reader.heavy and len(left) > 1
    results = map_in_processes(_work, jobs) if many else (_work(*job) for job in jobs)
    waiting: dict[int, dict[int, str]] = {}
    committed = time.monotonic()
    try:
        with closing(results):
            for start, bad, is_final in results:
                finished[start] = bad
                if is_final:
                    waiting[start] = bad
                done(len(target.rows(start)))
                if time.monotonic() - committed > COMMIT_SECONDS:
                    _commit(target, waiting)
                    waiting, committed = {}, time.monotonic()
    finally:
        _commit(target, waiting)
    return {row: why for bad in finished.values() for row, why in bad.items()}


def _commit(target: SplitTarget, blocks: dict[int, dict[int, str]]) -> None:
    """Sync finished blocks to disk: pixels first, then the lines of the journal that mark them."""
    with disk_errors(target.folder):
        sync_path(target.images)
        sync_path(target.digests)
        with open(target.journal, "a", encoding="utf-8") as journal:
            for start, bad in blocks.items():
                entry = _Entry(start=start, bad=bad, digests=_digest_of(target, start))
                journal.write(canonical_json(add_checksum(entry.model_dump(mode="json"))) + "\n")
            journal.flush()
            os.fsync(journal.fileno())


def _start(target: SplitTarget) -> dict[int, dict[int, str]]:
    """Return the finished blocks of an earlier try with their bad rows; create the files at first.

    Damaged lines of the journal and blocks with other digests are left out. No pixels are read.
    """
    finished: dict[int, dict[int, str]] = {}
    if target.journal.exists() and target.is_laid_out():
        for line in target.journal.read_bytes().split(b"\n"):
            with suppress(Corrupted, DiffctlError, OSError):
                entry = validate(_Entry, strip_checksum(parse_json(line, JsonObject, "")), "")
                if entry.digests == _digest_of(target, entry.start):
                    finished[entry.start] = entry.bad
        return finished
    with disk_errors(target.folder):
        target.folder.mkdir(parents=True, exist_ok=True)
        with open(target.images, "wb") as file:
            file.write(target.header)
            file.truncate(len(target.header) + target.shape[0] * target.row_bytes)
        with open(target.digests, "wb") as file:
            file.truncate(target.shape[0] * 64)
        target.journal.write_bytes(b"")
    return finished


class _Entry(Section):
    """A line of the journal."""

    start: NonNegativeInt
    bad: dict[int, str]
    digests: str


def _digest_of(target: SplitTarget, start: int) -> str:
    """Return the SHA-256 in hex of the digests of a block's rows; Corrupted if no block starts there."""
    if start % target.block or start >= target.shape[0]:
        raise Corrupted(f"no block begins at row {start}")
    rows = len(target.rows(start))
    return sha256(np.fromfile(target.digests, np.uint8, 64 * rows, offset=64 * start).data).hexdigest()


def _work(job: Job, target: SplitTarget, start: int) -> tuple[int, dict[int, str], bool]:
    """Read a block and write it at its place; return its first row, its bad rows and whether it is final."""
    rows = job()
    images = np.ascontiguousarray(conform(rows.images, target.shape[1:3], target.shape[3]))
    digests = np.zeros((len(images), 64), dtype=np.uint8)
    digests[:, :32] = row_digests(images)
    if rows.digests is not None:
        digests[:, 32:] = rows.digests
    with disk_errors(target.folder):
        with open(target.images, "r+b") as file:
            file.seek(len(target.header) + start * target.row_bytes)
            file.write(images.data)
        with open(target.digests, "r+b") as file:
            file.seek(64 * start)
            file.write(digests.data)
    return start, {start + row: why for row, why in rows.bad.items()}, rows.is_final
