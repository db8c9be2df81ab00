"""Observers of a training: their interface, and a guard so that their errors do not end it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import nn

from diffusion.system.errors import DiffctlWarning, reason
from diffusion.train.distributed.process_group import RankFailed

CHANGES_RESULTS = False  # diffusion/code_digest.py


class Observer(Protocol):
    """Callbacks of a training. Neither their results nor their errors change it."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Log the means since the last call, after `step` steps."""

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        """Show the newest means; called after every step."""

    def preview(self, step: int, network: nn.Module, ema: nn.Module) -> None:
        """Make preview images; called if `train.is_previewed`."""

    def validate(self, step: int, network: nn.Module, ema: nn.Module) -> dict[str, float]:
        """Return validation losses for the curve, or none; called if `train.is_validated`."""

    def evaluate(self, step: int, ema: nn.Module) -> None:
        """Score the EMA; called if `train.is_scored`."""


class NullObserver:
    """An observer that does nothing."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Do nothing."""

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        """Do nothing."""

    def preview(self, step: int, network: nn.Module, ema: nn.Module) -> None:
        """Do nothing."""

    def validate(self, step: int, network: nn.Module, ema: nn.Module) -> dict[str, float]:
        """Return no losses."""
        return {}

    def evaluate(self, step: int, ema: nn.Module) -> None:
        """Do nothing."""


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
