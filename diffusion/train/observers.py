"""What a training reports: observers, a guard for their errors, and the means of steps.

The loss by timestep quartile shows where between image and noise a training still learns. Sums and counts are
added up over a window of steps, so that each quartile's mean is over all of its images (iDDPM's code,
2102.09672).
"""

import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.system.errors import DiffctlWarning, reason
from diffusion.train.distributed.process_group import RankFailed

CHANGES_RESULTS = False  # diffusion/code_digest.py

MAX_LAG = 8  # steps that the host may be ahead of a GPU
QUARTILES = 4
QUARTILE_NAMES = tuple(f"loss_q{quartile}" for quartile in range(QUARTILES))
SUM, COUNT = ".sum", ".count"


class Observer:
    """Callbacks of a training, which do nothing here. Neither their results nor their errors change it."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Log the means since the last call, after `step` steps."""

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        """Show the newest means; called after every step."""

    def preview(self, step: int, network: nn.Module, ema: nn.Module) -> None:
        """Make preview images; called if `train.is_previewed`."""

    def validate(self, step: int, network: nn.Module, ema: nn.Module) -> dict[str, float]:
        """Return validation losses for the curve, or none; called if `train.is_validated`."""
        return {}

    def evaluate(self, step: int, ema: nn.Module) -> None:
        """Score the EMA; called if `train.is_scored`."""


@contextmanager
def observer_guard(what: str) -> Iterator[None]:
    """Report an error in the block as a DiffctlWarning, and continue; a stop or a failed rank is raised.

    `what` is what will be missing, for example "preview of step 5".
    """
    try:
        yield
    except RankFailed:
        raise
    except Exception as error:
        why = (isinstance(error, OSError) and error.strerror) or reason(error)
        warnings.warn(f"no {what} ({why}): the training continues without", DiffctlWarning, stacklevel=3)


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
            values = values.to("cpu", non_blocking=True)
            event = torch.cuda.current_stream().record_event()
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


def quartile_sums(losses: Tensor, index: Tensor, timesteps: int) -> dict[str, Tensor]:
    """Return sum and count of per-image losses (B,) by quarter of T; `index` (B,) is in [0, timesteps)."""
    quartile = index.to(losses.device) * QUARTILES // timesteps
    inside = (quartile[:, None] == torch.arange(QUARTILES, device=losses.device)).to(losses.dtype)
    sums = {f"{name}{SUM}": value for name, value in zip(QUARTILE_NAMES, losses @ inside, strict=True)}
    counts = zip(QUARTILE_NAMES, inside.sum(0), strict=True)
    return sums | {f"{name}{COUNT}": value for name, value in counts}


def with_quartile_means(totals: dict[str, float]) -> dict[str, float]:
    """Replace sums and counts by each quartile's mean; omit a quartile without images."""
    values = {name: value for name, value in totals.items() if not name.endswith((SUM, COUNT))}
    for name in QUARTILE_NAMES:
        if totals.get(f"{name}{COUNT}"):
            values[name] = totals[f"{name}{SUM}"] / totals[f"{name}{COUNT}"]
    return values
