"""NaN and infinity stop sampling with an error.

Clipping would hide them: an infinite x̂_0 becomes a black or a white image.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.system.errors import DiffctlError

CHANGES_RESULTS = False  # diffusion/code_digest.py


class NonFiniteError(DiffctlError):
    """A prediction, or what was computed from it, is NaN or infinite."""


class _Check(NamedTuple):
    """Which rows (B,) of a step were finite."""

    step: int
    t: float
    finite: Tensor


class NaNGuard:
    """Check each step's numbers; raise NonFiniteError with the first step that has NaN or infinity.

    On a CPU it raises at that step. Elsewhere `raise_pending` does at the end: to know it at each step would
    be to wait for the device. `name` describes a row; `why` gives a possible reason and a remedy.
    """

    def __init__(
        self,
        name: Callable[[int], str] = "row {}".format,
        why: Callable[[], str] = "check the input".format,
    ) -> None:
        self._name, self._why = name, why
        self._checks: list[_Check] = []

    def check(self, step: int, t: float, *parts: Tensor | None) -> None:
        """Check (B, …) parts, all on one device, of a step, counted from 1, at the time `t`."""
        rows = [part.reshape(len(part), -1).isfinite().all(1) for part in parts if part is not None]
        finite = torch.stack(rows).all(0)
        self._checks.append(_Check(step, t, finite))
        if finite.device.type == "cpu":
            self.raise_pending()

    def raise_pending(self) -> None:
        """Raise for the checks that have not been read yet; call it after the last step."""
        checks, self._checks = self._checks, []
        finite = torch.stack([check.finite for check in checks]).cpu() if checks else torch.ones(1, 1)
        if finite.all():
            return
        first, row = finite.logical_not().nonzero()[0].tolist()
        step, t, _ = checks[first]
        raise NonFiniteError(
            f"{self._name(row)} is NaN or infinite from step {step} on (t = {t:g}): {self._why()}"
        )


def guard_networks(networks: Mapping[str, nn.Module], guided: bool, name: Callable[[int], str]) -> NaNGuard:
    """Return a guard of these networks' predictions; `networks` are by their names in messages."""
    return NaNGuard(name, lambda: _reason(networks, guided))


def _reason(networks: Mapping[str, nn.Module], guided: bool) -> str:
    """Return where NaN or infinity comes from, and a remedy."""
    for label, network in networks.items():
        for name, weight in network.state_dict().items():
            if not weight.isfinite().all():
                return f"so are weights of the {label} ({name}), so use another one"
    overflow = "the weights are finite, but what they give is too large"
    return f"{overflow}: lower the guidance" if guided else f"{overflow}: train with a lower train.lr"
