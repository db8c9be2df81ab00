"""A copy of a training's newest states at DIFFCTL_STATE_URL, from which another machine resumes.

The URL is one that fsspec reads: a folder, s3://bucket/path or sftp://host/path. States are in a folder with
the training's fingerprint, with its EMA snapshots. A copy gets its name when it is complete. A damaged one is
quarantined under another name.
"""

import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from diffusion.model.posthoc_ema import snapshot_files, snapshot_step
from diffusion.system.devices import OnWait
from diffusion.system.errors import DiffctlWarning, TemporaryError, UsageError, reason
from diffusion.system.files import write_atomic
from diffusion.system.signals import patience_left
from diffusion.train.checkpoint.run_record import SNAPSHOTS
from diffusion.train.checkpoint.state_files import (
    KEPT_STATES,
    NAMES,
    QUARANTINED,
    READ_ERRORS,
    newest_state,
    newest_step,
    read_state,
    refuse_unreadable,
    state_name,
    step_of,
)

IN_CODE_DIGEST = False  # diffusion/code_digest.py

VARIABLE = "DIFFCTL_STATE_URL"
POLL_SECONDS = 1.0
STALL_SECONDS = 60.0  # without progress, after which the end of a training no longer waits for the last copy
RESERVE_SECONDS = 5.0  # of a signal's patience, for what a training does after the last copy
BLOCK = 2**20
PART = 2**23  # bytes that an object store receives at once
MAX_PARTS = 9000  # of an object; S3 allows 10,000


class StateMirror:
    """The copies of a run directory's states; UsageError for a URL that fsspec cannot read, or in memory."""

    def __init__(self, url: str, folder: Path) -> None:
        from fsspec import AbstractFileSystem  # takes a moment, and most trainings have no mirror
        from fsspec.core import url_to_fs

        if "memory://" in url:
            where = "a folder, s3://bucket/path or sftp://host/path"
            raise UsageError(f"{VARIABLE} {url} ends with this process: name {where}")
        self._folder = folder
        self._intact: set[int] = set()  # steps of the copies that this process wrote or verified
        self._bytes = 0  # written so far
        self._problem = ""  # of the latest upload
        try:
            self._system, root = url_to_fs(
                f"{url.rstrip('/')}/{folder.name}", use_listings_cache=False, skip_instance_cache=True
            )
        except (ImportError, ValueError) as error:
            raise UsageError(f"{VARIABLE}: {reason(error)}") from None
        self._root = PurePosixPath(root)
        # fsspec's own `mv` copies and deletes: in object stores, where an object appears when it is complete.
        self._renames = getattr(self._system.mv, "__func__", None) is not AbstractFileSystem.mv

    def fetch(self) -> int:
        """Copy the newest intact state here if it is newer than those here; return its step, else 0.

        Damaged states here are quarantined. If the mirror cannot be read: TemporaryError without a state
        here, else a DiffctlWarning.
        """
        intact = newest_state(self._folder)
        here = intact.values.step if intact else 0
        try:
            for path in reversed(self._states()):
                if step_of(Path(path)) <= here:
                    break
                if self._fetch_state(path):
                    return step_of(Path(path))
        except TemporaryError:  # of a state on this disk
            raise
        except Exception as error:  # each file system has its own errors
            message = f"{VARIABLE} cannot be read ({reason(error)})"
            if not here:
                raise TemporaryError(f"{message}: try again, or unset it to start from scratch") from None
            warnings.warn(f"{message}: resuming from the state here", DiffctlWarning, stacklevel=2)
        return 0

    def discard(self) -> None:
        """Remove all copies; TemporaryError if the mirror cannot be reached."""
        try:
            if self._files():
                self._system.rm(str(self._root), recursive=True)
        except Exception as error:  # each file system has its own errors
            raise TemporaryError(f"{VARIABLE} cannot be cleared ({reason(error)}): try again") from None

    @contextmanager
    def in_background(self, on_wait: OnWait) -> Iterator[None]:
        """Copy states from a thread during the block, the last one at its end; report an error once.

        The end waits while the copy makes progress, after a signal only as long as its sender does.
        `on_wait` is called if it waits. A DiffctlWarning names a last state that was not copied.
        """
        over = threading.Event()
        thread = threading.Thread(target=self._upload_until, args=(over,), name="mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            self._wait(thread, on_wait)

    def _wait(self, thread: threading.Thread, on_wait: OnWait) -> None:
        thread.join(POLL_SECONDS)
        step, seen, since, why = newest_step(self._folder), self._bytes, time.monotonic(), ""
        if thread.is_alive():
            on_wait(f"copying the state of step {step:,} to {VARIABLE}")
        while thread.is_alive() and not why:
            if self._bytes > seen:
                seen, since = self._bytes, time.monotonic()
            if patience_left() < RESERVE_SECONDS:
                why = "the signal leaves no more time"
            elif time.monotonic() > since + STALL_SECONDS:
                why = f"no progress for {STALL_SECONDS:.0f} s"
            thread.join(POLL_SECONDS)
        if step and step not in self._intact:
            what = f"the state of step {step:,} is in {self._folder} alone, not at {VARIABLE}"
            warnings.warn(f"{what} ({why or self._problem})", DiffctlWarning, stacklevel=2)

    def _upload_until(self, over: threading.Event) -> None:
        is_over = False
        while not is_over:
            is_over = over.wait(POLL_SECONDS)
            step = newest_step(self._folder)
            if not step or step in self._intact:
                continue
            try:
                self._upload(step)
                self._problem = ""
            except Exception as error:  # each file system has its own errors
                if not self._problem and not is_over:
                    what = f"the state of step {step:,} was not copied to {VARIABLE} ({reason(error)})"
                    warnings.warn(f"{what}: the training continues", DiffctlWarning, stacklevel=2)
                self._problem = reason(error)

    def _upload(self, step: int) -> None:
        """Copy a state, after its snapshots; remove states before the two newest that are intact.

        A state of this step may be there, and damaged. So it is replaced, unless this process verified it.
        """
        present = self._files()
        snapshots = [path for path in snapshot_files(self._folder / SNAPSHOTS) if snapshot_step(path) <= step]
        for path in snapshots:
            if present.get(str(self._target(path))) != path.stat().st_size:
                self._write(path)
        self._write(self._folder / state_name(step))
        self._intact.add(step)
        if len(self._intact) >= KEPT_STATES:
            oldest = state_name(sorted(self._intact)[-KEPT_STATES])
            for copied in map(PurePosixPath, self._files()):
                is_old = copied.match(NAMES) and copied.name < oldest
                if is_old or copied.name.startswith((QUARANTINED, ".")):  # the latter was never completed
                    self._system.rm(str(copied))

    def _write(self, path: Path) -> None:
        """Copy a file of the run directory; the copy appears or is replaced when it is complete."""
        system, target = self._system, self._target(path)
        system.makedirs(str(target.parent), exist_ok=True)
        with open(path, "rb") as source:
            if self._renames:
                made = str(self._root / f".{path.name}.{secrets.token_hex(4)}.tmp")
                with system.open(made, "wb") as file:
                    self._copy(source, file)
                system.mv(made, str(target))
            else:
                parts = 1 + path.stat().st_size // (PART * MAX_PARTS)
                with system.transaction, system.open(str(target), "wb", block_size=PART * parts) as file:
                    self._copy(source, file)

    def _copy(self, source: IO[bytes], file: IO[bytes]) -> None:
        while block := source.read(BLOCK):
            file.write(block)
            self._bytes += len(block)

    def _target(self, path: Path) -> PurePosixPath:
        return self._root / path.relative_to(self._folder)

    def _fetch_state(self, path: str) -> bool:
        """Copy a state here, after its snapshots; report and quarantine a damaged one, and return False."""
        step, state = step_of(Path(path)), self._folder / PurePosixPath(path).name
        for other in map(PurePosixPath, self._files()):
            if other.parent.name == SNAPSHOTS and snapshot_step(Path(other)) <= step:
                self._download(str(other), self._folder / SNAPSHOTS / other.name)
        self._download(path, state)
        try:
            read_state(state)
        except READ_ERRORS as error:
            refuse_unreadable(state, error)
            state.unlink()
            self._system.mv(path, str(self._root / f"{QUARANTINED}{state.name}"))
            warnings.warn(f"{state.name} of {VARIABLE} is damaged ({error})", DiffctlWarning, stacklevel=3)
            return False
        self._intact.add(step)
        return True

    def _download(self, path: str, target: Path) -> None:
        with self._system.open(path, "rb") as source:
            write_atomic(target, lambda file: shutil.copyfileobj(source, file, BLOCK))

    def _files(self) -> dict[str, int]:
        """Return the sizes of the copied files."""
        found = self._system.find(str(self._root), detail=True)
        return {path: entry["size"] for path, entry in found.items()}

    def _states(self) -> list[str]:
        """Return the copied states, the newest last."""
        return sorted(path for path in self._files() if PurePosixPath(path).match(NAMES))
