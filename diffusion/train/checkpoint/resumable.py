"""What every training shares: its counters and curve, and how it becomes a saved state and comes back."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffusion.code_digest import CodeSince
from diffusion.train.checkpoint.lazy_tensors import split_parts
from diffusion.train.checkpoint.state_files import SavedState
from diffusion.train.checkpoint.state_values import StateValues

STEP_KEY = "step"  # what an optimiser calls its count of steps, beside a parameter's moments


class StatePart(Protocol):
    """A part of a training that has tensors by name."""

    def state_dict(self) -> Mapping[str, Any]:
        """The tensors."""

    def load_state_dict(self, tensors: Mapping[str, Tensor], /) -> object:
        """Take the tensors back, each asked for once, in their order."""


class ModuleState:
    """A module's parameters and buffers as a part."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors themselves."""
        return self._module.state_dict()

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the numbers back; ValueError for names or shapes of another module.

        torch's own method would have all of them in memory before it begins.
        """
        held = self.state_dict()
        for name in [*held, *tensors]:
            if name not in held or name not in tensors:
                raise ValueError(f"{name} is {'missing' if name in held else 'unknown'}")
        for name, tensor in tensors.items():
            if tensor.shape != held[name].shape:
                raise ValueError(f"{name} of {list(tensor.shape)} is none of {list(held[name].shape)}")
            held[name].copy_(tensor)


class OptimizerState:
    """An optimiser's moments as a part: `parameter.moment`, the parameters by number."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Tensor]:
        """The moments, none before the first step."""
        state = self._optimizer.state_dict()["state"]
        return {f"{index}.{name}": value for index, named in state.items() for name, value in named.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the moments back, laid in memory as their parameters, which the fused optimiser asks for."""
        parameters = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        named = {name: name.split(".") for name in tensors}
        # All of it before the first tensor comes: what is freed between them would leave holes as large.
        places = {
            name: torch.empty_like(parameters[int(index)])
            for name, (index, moment) in named.items()
            if moment != STEP_KEY
        }
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, moment = named[name]
            state.setdefault(int(index), {})[moment] = _filled(places.get(name), tensor)
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})


def _filled(place: Tensor | None, moment: Tensor) -> Tensor:
    """The moment in its place; a count of steps has none, and is what comes."""
    expected = moment.new_empty(()) if place is None else place
    if moment.shape != expected.shape:
        raise ValueError(f"a moment of {list(moment.shape)} is none of {list(expected.shape)}")
    return moment if place is None else place.copy_(moment)


@dataclass(kw_only=True)
class Resumable(ABC):
    """A training after `step` steps; `values` and `tensors` are all that a resume needs.

    `skipped` steps were not finite, the last `bad_in_a_row` of them at a stretch. `window` has the sums and
    the count of the means since they were last told. `history` is the curve, `code` what made the steps.
    `is_copy` where its tensors are its own, and no step of another one changes them.
    """

    step: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    window: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    code: list[CodeSince] = field(default_factory=list)
    is_copy: bool = False

    @abstractmethod
    def parts(self) -> dict[str, StatePart]:
        """What has tensors, by name."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of all parts, by `part.name`."""
        held = {part: holder.state_dict() for part, holder in self.parts().items()}
        return {f"{part}.{name}": value for part, named in held.items() for name, value in named.items()}

    def values(self) -> StateValues:
        """The counters, the curve so far, and the code."""
        return StateValues(**{name: getattr(self, name) for name in StateValues.model_fields})

    def saved(self) -> SavedState:
        """All of it, as it would be saved."""
        return SavedState(self.tensors(), self.values(), self.is_copy)

    def restore(self, saved: SavedState) -> None:
        """Become the saved state, exactly; the present code makes the steps from there on.

        Each tensor is asked for once, in the order in which they are saved, and let go before the next one.
        """
        parts, tensors = self.parts(), split_parts(saved.tensors)
        if unknown := tensors.keys() - parts.keys():
            raise ValueError(f"{min(unknown)} is unknown")
        for part, holder in parts.items():
            holder.load_state_dict(tensors.get(part, {}))
        present = self.code[-1:]
        for name in StateValues.model_fields:
            setattr(self, name, deepcopy(getattr(saved.values, name)))
        self.code = [*self.code, *present]
        if len(self.code) > 1:
            *before, now = self.code
            same = (now.digest, now.torch) == (before[-1].digest, before[-1].torch)
            self.code = before if same else [*before, now.model_copy(update={"step": self.step})]

    def change_of_code(self) -> tuple[CodeSince, CodeSince] | None:
        """The code before and the present one, where a training goes on by another than began it."""
        if len(self.code) < 2 or self.code[-1].step != self.step:
            return None
        return self.code[-2], self.code[-1]

    def count(self, means: dict[str, float]) -> None:
        """Add a finite step's means to the window; count another."""
        if is_finite(means):
            self.bad_in_a_row = 0
            for name, value in {**means, "count": 1.0}.items():
                self.window[name] = self.window.get(name, 0.0) + value
        else:
            self.skipped += 1
            self.bad_in_a_row += 1

    def take_means(self) -> dict[str, float]:
        """The means of the window, which is empty then; none when no step in it was finite."""
        sums, self.window = self.window, {}
        count = sums.pop("count", 0.0)
        return {name: total / count for name, total in sums.items()}


def is_finite(means: dict[str, float]) -> bool:
    """Whether all of a step's means are finite."""
    return all(map(math.isfinite, means.values()))
