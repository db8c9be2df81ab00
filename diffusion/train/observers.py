"""What a training reports: observers, a guard for their errors, and the means of steps."""

import os
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.system.errors import DiffctlWarning, reason
from diffusion.train.checkpoint.state_files import SavedState
from diffusion.train.distributed.process_group import RankFailed
from diffusion.train.train_state import TrainState

IN_CODE_DIGEST = False  # diffusion/code_digest.py

MONITORED_STEPS, MONITORED_SECONDS = 10, 5.0  # least length of a window of ThreadMonitor
BUSY_SHARE = 0.6  # of the threads' time; an idle machine gives about all of it
MAX_LAG = 8  # steps that the host may be ahead of a GPU


class Observer:
    """Callbacks of a training, which do nothing here and change no result.

    They get networks in eval mode. `observer_guard` catches the errors of those from `metrics` on.
    """

    def announce(self, state: TrainState, ema: nn.Module) -> None:
        """Report the start or resume; `ema` is unsharded if it is scored at this step."""

    def save(self, saved: SavedState) -> None:
        """Save the state."""

    def finished(self, model: Path) -> None:
        """Report the written model file."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Log the means since the last call, after `step` steps."""

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        """Show the newest means; called after every step."""

    def preview(self, step: int, network: nn.Module, ema: nn.Module) -> None:
        """Make preview images; called every `train.preview_every` steps."""

    def validate(self, state: TrainState, network: nn.Module, ema: nn.Module) -> dict[str, float]:
        """Return validation losses for the curve, or none; called if `train.is_validated`."""
        return {}

    def evaluate(self, step: int, ema: nn.Module) -> None:
        """Score the EMA; called every `train.eval_every` steps."""


@contextmanager
def observer_guard(what: str) -> Iterator[None]:
    """Report an error in the block as a warning that `what` is missing, except that of a failed rank."""
    try:
        yield
    except RankFailed:
        raise
    except Exception as error:
        why = (isinstance(error, OSError) and error.strerror) or reason(error)
        warnings.warn(f"no {what} ({why}): the training continues without", DiffctlWarning, stacklevel=3)


class ThreadMonitor:
    """Warns once if the threads of a training on a CPU wait for cores that other processes use.

    Threads that share an operation wait for the last of them, so that on busy cores several threads are far
    slower than one. The measure is the process's CPU time during some steps, per thread and wall time, while
    more processes want to run than there are cores.
    """

    def __init__(self, threads: int) -> None:
        self._threads, self._is_over, self._steps = threads, threads == 1, 0
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def count_step(self) -> None:
        """Count a step; DiffctlWarning after a window in which the threads waited for cores."""
        self._steps += 1
        wall, cpu = time.monotonic(), time.process_time()
        seconds = wall - self._wall
        if self._is_over or self._steps < MONITORED_STEPS or seconds < MONITORED_SECONDS:
            return
        cores = (cpu - self._cpu) / seconds
        self._steps, self._wall, self._cpu = 0, wall, cpu
        if cores < BUSY_SHARE * self._threads and os.getloadavg()[0] > (os.cpu_count() or 1):
            self._is_over = True
            warnings.warn(
                f"the machine is busy: in {seconds:.0f} s the training's {self._threads} threads had "
                f"{cores:.1f} cores; OMP_NUM_THREADS=1 may make it many times faster, and a restart resumes "
                "from the saved state",
                DiffctlWarning,
                stacklevel=2,
            )


class AsyncMetrics:
    """The means of every step, in order, as they arrive on the host.

    On a CPU they are there at once. From a GPU they are copied behind the step's work, and the host waits
    only if it is `MAX_LAG` steps ahead.
    """

    def __init__(self) -> None:
        self.newest: dict[str, float] = {}
        self._pending: deque[tuple[tuple[str, ...], Tensor, Any]] = deque()

    def add(self, means: dict[str, Tensor]) -> None:
        """Start the copy of a step's means, each a number on the device."""
        values = torch.stack(list(means.values()))
        event = None
        if values.is_cuda:
            stream = torch.cuda.current_stream(values.device)
            values = values.to("cpu", non_blocking=True)
            event = stream.record_event()
        self._pending.append((tuple(means), values, event))

    def arrived(self, *, everything: bool = False) -> Iterator[dict[str, float]]:
        """Yield the means that have arrived; wait for all pending ones if `everything`."""
        while self._pending:
            names, values, event = self._pending[0]
            if event is not None and not event.query():
                if not everything and len(self._pending) <= MAX_LAG:
                    return
                event.synchronize()
            self._pending.popleft()
            self.newest = dict(zip(names, values.tolist(), strict=True))
            yield self.newest
