"""Numbers that are none: NaN and infinity end the work instead of becoming pictures.

Clipping would hide them: an infinite x̂_0 comes back as a black or a white image.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.system.errors import DiffctlError


class NonFiniteError(DiffctlError):
    """What a model says, or what was made of it, is NaN or infinite."""


class _Look(NamedTuple):
    """Which rows (B,) of a step were finite."""

    step: int
    t: float
    finite: Tensor


class NaNGuard:
    """Looks at each step's numbers and raises NonFiniteError with the first step at which some were none.

    On a CPU at that step. Elsewhere at the `end`: to be told at each step would be to wait for each.
    `name` says what a row is; `why` where such numbers may come from, and what to do.
    """

    def __init__(
        self,
        name: Callable[[int], str] = "row {}".format,
        why: Callable[[], str] = "look at what was asked".format,
    ) -> None:
        self._name, self._why = name, why
        self._looks: list[_Look] = []

    def see(self, step: int, t: float, *parts: Tensor | None) -> None:
        """Look at (B, …) parts, all on one device, of what a step made, counted from 1 and asked at `t`."""
        rows = [part.reshape(len(part), -1).isfinite().all(1) for part in parts if part is not None]
        finite = torch.stack(rows).all(0)
        self._looks.append(_Look(step, t, finite))
        if finite.device.type == "cpu":
            self.end()

    def end(self) -> None:
        """Raise what has not been told yet; to be called after the last step."""
        looks, self._looks = self._looks, []
        finite = torch.stack([look.finite for look in looks]).cpu() if looks else torch.ones(1, 1)
        if finite.all():
            return
        first, row = finite.logical_not().nonzero()[0].tolist()
        look = looks[first]
        when = f"from step {look.step} on (t = {look.t:g})"
        raise NonFiniteError(f"{self._name(row)} is NaN or infinite {when}: {self._why()}")


def guard_networks(networks: Mapping[str, nn.Module], guided: bool, name: Callable[[int], str]) -> NaNGuard:
    """The watch over what these networks say, each under what a person calls it."""
    return NaNGuard(name, lambda: _why(networks, guided))


def _why(networks: Mapping[str, nn.Module], guided: bool) -> str:
    """Where numbers that are none come from; looked for only when there are some."""
    for called, network in networks.items():
        for name, weight in network.state_dict().items():
            if not weight.isfinite().all():
                return f"so are weights of the {called} ({name}), so use another one"
    known = "the weights are finite, but what they give is too large"
    return f"{known}: lower the guidance" if guided else f"{known}: train with a lower train.lr"
