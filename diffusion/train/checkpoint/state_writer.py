"""Who writes a training's states: beside the next steps, where the memory suffices for a copy of the state.

The copy is taken between two steps, so that it is the state after one of them. No step waits for its way to
the disk, but that before the next save. How a state comes into its place is `state_file`'s, and is the same
either way.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from diffusion.system.machine_memory import available_memory
from diffusion.train.checkpoint.state_files import SavedState, save_state

SPARE = 2  # times what a copy takes must be free for it: the next steps may need more than those before


class StateWriter:
    """Writes states into a folder, at most one at a time, each whole or not at all.

    Within `beside` a write may go on when `save` has returned. What it fails at is raised by whatever comes
    next: `check`, `save`, `wait` or the end of the block.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[Path] | None = None

    def save(self, state: SavedState) -> None:
        """Write the state, or a copy of it beside what follows; DiffctlError on a full disk.

        One that is a copy already, as a state that was gathered from shards, is not copied again.
        """
        self.wait()
        size = sum(tensor.nbytes for tensor in state.tensors.values())
        if self._thread is None or (SPARE - state.is_copy) * size > available_memory():
            save_state(self._folder, state)
        else:
            copied = state if state.is_copy else detached_copy(state)
            self._writing = self._thread.submit(save_state, self._folder, copied)

    def check(self) -> None:
        """Raise what a write has failed at; one that is still going on is let."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until no write is going on; raise what one has failed at."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Let states be written beside the block, which ends when the last of them is written."""
        with ThreadPoolExecutor(1, "state") as self._thread:
            try:
                yield
            finally:
                self._thread = None
                self.wait()


def detached_copy(state: SavedState) -> SavedState:
    """The state as it is now, on the CPU, in memory of its own."""
    return SavedState({name: _copied(tensor) for name, tensor in state.tensors.items()}, state.values, True)


def _copied(tensor: Tensor) -> Tensor:
    """The numbers in the order in which they are written."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
