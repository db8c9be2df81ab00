"""Saved states of a training: checksummed files, the two newest are kept.

A state file is written under a temporary name and renamed when it is complete. Its checksum covers name and
content, which is safetensors. A truncated, altered or renamed state is reported and quarantined, and the one
before is used. Tensors are written and read one at a time, so that a large state is never in memory twice.
"""

import json
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from diffusion.code_digest import CodeSince
from diffusion.model.weights_header import DTYPE_NAMES
from diffusion.system.checksums import Corrupted, JsonObject, open_checksummed, parse_json, write_checksummed
from diffusion.system.errors import DiffctlError, DiffctlWarning, TemporaryError
from diffusion.system.files import disk_errors
from diffusion.system.memory import available_memory
from diffusion.system.section import Section, brief, canonical_json

IN_CODE_DIGEST = False  # diffusion/code_digest.py

KEPT_STATES = 2
PREFIX, SUFFIX = "state-", ".sealed"
NAMES = f"{PREFIX}{'[0-9]' * 9}{SUFFIX}"  # a pattern of the states' file names
QUARANTINED = "damaged-"  # name prefix of a damaged state, which the next successful save removes
READ_ERRORS = (ValueError, OSError, DiffctlError)  # what reading a state may raise
VALUES = "values"  # the tensor that holds the counters, as the bytes of their JSON
MEMORY_FACTOR = 2  # times a copy's size that must be free for it, since the next steps may need more
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}

Means = dict[str, float]


class StateValues(Section):
    """The counters of a training after `step` steps: the fields of `TrainState` that are no tensors."""

    step: NonNegativeInt = 0
    skipped: NonNegativeInt = 0
    bad_in_a_row: NonNegativeInt = 0
    window: Means = Field(default_factory=dict)
    history: list[Means] = Field(default_factory=list)
    code: list[CodeSince] = Field(default_factory=list)


class SavedState(NamedTuple):
    """Named tensors and the counters."""

    tensors: Mapping[str, Tensor]
    values: StateValues


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, in a fixed order; `load` returns one when it is requested.

    `meta` has a tensor of the same shape and type on the meta device for each name.
    """

    def __init__(self, meta: Mapping[str, Tensor], load: Callable[[str], Tensor]) -> None:
        self.meta, self._load = meta, load

    def __getitem__(self, name: str) -> Tensor:
        return self._load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.meta)

    def __len__(self) -> int:
        return len(self.meta)

    def __contains__(self, name: object) -> bool:
        return name in self.meta


def meta_tensors(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return shapes and types by name as meta tensors; load nothing."""
    if isinstance(tensors, LazyTensors):
        return tensors.meta
    return {name: tensor.detach().to("meta") for name, tensor in tensors.items()}


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> LazyTensors:
    """Return the tensors with names that do not start with `prefix`."""
    meta = {name: one for name, one in meta_tensors(tensors).items() if not name.startswith(prefix)}
    return LazyTensors(meta, tensors.__getitem__)


def save_state(folder: Path, state: SavedState) -> Path:
    """Write the state and remove all others but the newest; a failed write removes none."""
    path = folder / state_name(state.values.step)
    values = bytearray(canonical_json(state.values).encode())
    content = {**state.tensors, VALUES: torch.frombuffer(values, dtype=torch.uint8)}
    with disk_errors(f"the training's state in {folder}"):
        write_checksummed(path, lambda file: write_tensors(file, content))
    others = [other for other in state_files(folder) if other != path]
    for old in [*others[: 1 - KEPT_STATES], *folder.glob(f"{QUARANTINED}*")]:
        old.unlink(missing_ok=True)
    return path


def write_tensors(file: Any, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors in order, as safetensors; KeyError for an unsupported type."""
    header: dict[str, object] = {}
    at = 0
    for name, tensor in tensors.items():
        end = at + tensor.nbytes
        dtype = DTYPE_NAMES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors to 8 bytes
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        file.write(_as_bytes(tensor.detach().cpu().contiguous()))


def newest_step(folder: Path) -> int:
    """Return the step of the newest state; 0 without one."""
    return max((step_of(path) for path in state_files(folder)), default=0)


def newest_state(folder: Path) -> SavedState | None:
    """Return the newest intact state, None without one; report and quarantine damaged ones.

    TemporaryError if the system refuses to read one, which may be intact.
    """
    states = state_files(folder)
    while states:
        path = states.pop()
        try:
            return read_state(path)
        except READ_ERRORS as error:
            refuse_unreadable(path, error)
            then = "using the state before it" if states else f"no state is left in {folder}"
            warnings.warn(f"{path} is damaged ({error}): {then}", DiffctlWarning, stacklevel=2)
            path.replace(path.with_name(QUARANTINED + path.name))  # its step may be higher than those to come
    return None


def refuse_unreadable(path: Path, error: Exception) -> None:
    """Raise TemporaryError if the system refused to read a state: it may be intact."""
    if isinstance(error, OSError) and error.errno:
        raise TemporaryError(f"{path} cannot be read ({error.strerror}): try again, or remove it") from None


def read_state(path: Path) -> SavedState:
    """Verify a state file and return its state; one of READ_ERRORS if it is damaged or missing.

    The tensors are read on request from the file that was verified, which stays open until then.
    """
    file, size = open_checksummed(path)
    try:
        tensors = stored_tensors(file, size)
        data = tensors[VALUES].numpy().tobytes()
    except (LookupError, TypeError, ValueError, RuntimeError, OverflowError, DiffctlError) as error:
        file.close()
        raise Corrupted(f"it holds no counters: {brief(error, str)}") from None
    values = parse_json(data, StateValues, "the list of its counters")
    if values.step != step_of(path):
        raise Corrupted(f"it is of step {values.step:,}")
    return SavedState(without_prefix(tensors, VALUES), values)


def stored_tensors(file: IO[bytes], size: int) -> LazyTensors:
    """Return the tensors in the first `size` bytes of an open safetensors file, read on request.

    The file is closed with the last reference. An invalid header raises one of several errors.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > size:
        raise ValueError(f"it has a header of {length:,} bytes")
    header = parse_json(file.read(length), JsonObject, "its header")
    meta = {
        name: torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]], device="meta")
        for name, entry in header.items()
    }
    starts = {name: 8 + length + int(entry["data_offsets"][0]) for name, entry in header.items()}

    def load(name: str) -> Tensor:
        tensor = torch.empty_like(meta[name], device="cpu")
        file.seek(starts[name])
        if file.readinto(_as_bytes(tensor)) != tensor.nbytes:  # type: ignore[attr-defined]
            raise OSError(f"the file ended within {name}")
        return tensor

    tensors = LazyTensors(meta, load)
    weakref.finalize(tensors, file.close)
    return tensors


def _as_bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def state_files(folder: Path) -> list[Path]:
    """Return the state files in a folder, the newest last."""
    return sorted(folder.glob(NAMES))


def state_name(step: int) -> str:
    """Return the name of the state file after `step` steps."""
    return f"{PREFIX}{step:09d}{SUFFIX}"


def step_of(path: Path) -> int:
    """Return the step in a state file's name."""
    return int(path.name.removeprefix(PREFIX).removesuffix(SUFFIX))


class StateWriter:
    """Writes states into a folder, one at a time.

    Within `in_background` the write of a state overlaps with the next steps, if memory suffices for a copy of
    the state. An error of such a write is raised by the next `check`, `save` or `wait`, or at the end of the
    block.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[Path] | None = None

    def save(self, state: SavedState) -> None:
        """Write the state, or start to write a copy of it; DiffctlError if the disk is full."""
        self.wait()
        size = sum(tensor.nbytes for tensor in state.tensors.values())
        if self._thread is None or MEMORY_FACTOR * size > available_memory():
            save_state(self._folder, state)
        else:
            self._writing = self._thread.submit(save_state, self._folder, detached_copy(state))

    def check(self) -> None:
        """Raise the error of a finished write; do not wait for one in progress."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the write in progress; raise its error."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """Write states in a thread within the block; wait for the last write at its end."""
        with ThreadPoolExecutor(1, "state") as self._thread:
            try:
                yield
            finally:
                self._thread = None
                self.wait()


def detached_copy(state: SavedState) -> SavedState:
    """Return a contiguous copy of the state in the CPU's memory."""
    copies = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
        for name, tensor in state.tensors.items()
    }
    return SavedState(copies, state.values)
