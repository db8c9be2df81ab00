"""A copy of a training's newest states at DIFFCTL_STATE_URL, from which another machine resumes.

The URL is one that fsspec reads: a folder, s3://bucket/path or sftp://host/path. States are in a folder with
the training's fingerprint, with its EMA snapshots.
"""

import shutil
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from diffusion.model.posthoc_ema import snapshot_files, snapshot_step
from diffusion.system.errors import DiffctlWarning, TemporaryError, UsageError, reason
from diffusion.system.files import write_atomic
from diffusion.train.checkpoint.run_record import SNAPSHOTS
from diffusion.train.checkpoint.state_files import (
    KEPT_STATES,
    NAMES,
    READ_ERRORS,
    newest_step,
    read_state,
    state_name,
    step_of,
)

IN_CODE_DIGEST = False  # diffusion/code_digest.py

VARIABLE = "DIFFCTL_STATE_URL"
POLL_SECONDS = 1.0
END_SECONDS = 60.0  # that the last upload may delay the end of a training
BLOCK = 2**20


class StateMirror:
    """The copies of a run directory's states; UsageError for a URL that fsspec cannot read."""

    def __init__(self, url: str, folder: Path) -> None:
        from fsspec.core import url_to_fs  # takes a moment, and most trainings have no mirror

        self._folder = folder
        try:
            self._system, root = url_to_fs(
                f"{url.rstrip('/')}/{folder.name}", use_listings_cache=False, skip_instance_cache=True
            )
        except (ImportError, ValueError) as error:
            raise UsageError(f"{VARIABLE}: {reason(error)}") from None
        self._root = PurePosixPath(root)

    def fetch(self) -> int:
        """Copy the newest intact state here if it is newer than those here; return its step, else 0.

        If the mirror cannot be read: TemporaryError without a state here, else a DiffctlWarning.
        """
        here = newest_step(self._folder)
        try:
            for path in reversed(self._states()):
                if step_of(Path(path)) <= here:
                    break
                if self._fetch_state(path):
                    return step_of(Path(path))
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
    def in_background(self) -> Iterator[None]:
        """Copy states from a thread during the block, the last one at its end; report an error once."""
        over = threading.Event()
        thread = threading.Thread(target=self._upload_until, args=(over,), name="mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(END_SECONDS)

    def _upload_until(self, over: threading.Event) -> None:
        uploaded, is_reported, is_over = 0, False, False
        while not is_over:
            is_over = over.wait(POLL_SECONDS)
            if (step := newest_step(self._folder)) == uploaded:
                continue
            try:
                self._upload(step)
                uploaded, is_reported = step, False
            except Exception as error:  # each file system has its own errors
                if not is_reported:
                    what = f"the state of step {step:,} was not copied to {VARIABLE} ({reason(error)})"
                    warnings.warn(f"{what}: the training continues", DiffctlWarning, stacklevel=2)
                is_reported = True

    def _upload(self, step: int) -> None:
        """Copy a state, after its snapshots; remove older states."""
        present = self._files()
        snapshots = [path for path in snapshot_files(self._folder / SNAPSHOTS) if snapshot_step(path) <= step]
        for path in [*snapshots, self._folder / state_name(step)]:
            target = self._root / path.relative_to(self._folder)
            if present.get(str(target)) != path.stat().st_size:
                self._system.makedirs(str(target.parent), exist_ok=True)
                with open(path, "rb") as source, self._system.open(str(target), "wb") as file:
                    shutil.copyfileobj(source, file, BLOCK)
        for old in self._states()[:-KEPT_STATES]:
            self._system.rm(old)

    def _fetch_state(self, path: str) -> bool:
        """Copy a state and its snapshots here; return False if it is damaged, which is reported."""
        step, state = step_of(Path(path)), self._folder / PurePosixPath(path).name
        self._download(path, state)
        try:
            read_state(state)
        except READ_ERRORS as error:
            state.unlink()
            warnings.warn(f"{state.name} of {VARIABLE} is damaged ({error})", DiffctlWarning, stacklevel=3)
            return False
        for other in map(PurePosixPath, self._files()):
            if other.parent.name == SNAPSHOTS and snapshot_step(Path(other)) <= step:
                self._download(str(other), self._folder / SNAPSHOTS / other.name)
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
