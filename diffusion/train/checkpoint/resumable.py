"""The base of a resumable training: its counters and curve, and its conversion to and from a saved state."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffusion.code_digest import CodeSince
from diffusion.train.checkpoint.state_files import Means, SavedState, StateValues
from diffusion.train.checkpoint.tensor_stream import split_parts

STEP_KEY = "step"  # an optimiser's name for its count of steps, among a parameter's moments


class StatePart(Protocol):
    """A part of a training that has named tensors."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the tensors."""

    def load_state_dict(self, tensors: Mapping[str, Tensor], /) -> object:
        """Load the tensors, each requested once, in their order."""


class ModuleState:
    """A module's parameters and buffers as a part."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors themselves."""
        return self._module.state_dict()

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors into the module, one in memory at a time; ValueError if they do not fit."""
        held = self.state_dict()
        for name in [*held, *tensors]:
            if name not in held or name not in tensors:
                raise ValueError(f"{name} is {'missing' if name in held else 'unknown'}")
        for name, tensor in tensors.items():
            _check_shape(name, tensor.shape, held[name].shape)
            held[name].copy_(tensor)


class OptimizerState:
    """An optimiser's moments as a part: `parameter.moment`, with the parameter's number."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moments; none before the first step."""
        state = self._optimizer.state_dict()["state"]
        return {f"{index}.{name}": value for index, named in state.items() for name, value in named.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the moments in their parameters' memory layout, which the fused optimiser requires."""
        parameters = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        split = {name: name.split(".") for name in tensors}
        # All are allocated before the first tensor is loaded, so that freed buffers leave no holes.
        buffers = {
            name: torch.empty_like(parameters[int(index)])
            for name, (index, moment) in split.items()
            if moment != STEP_KEY
        }
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, moment = split[name]
            buffer = buffers.get(name)
            _check_shape(name, tensor.shape, torch.Size() if buffer is None else buffer.shape)
            state.setdefault(int(index), {})[moment] = tensor if buffer is None else buffer.copy_(tensor)
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})


def _check_shape(name: str, found: torch.Size, expected: torch.Size) -> None:
    if found != expected:
        raise ValueError(f"{name} has shape {list(found)} instead of {list(expected)}")


@dataclass(kw_only=True)
class Resumable(ABC):
    """A training after `step` steps. A resume needs its `values` and `tensors` alone.

    `skipped` counts non-finite steps, `bad_in_a_row` the latest ones in a row. `window` has the sums and the
    count of the means since the last log entry. `history` is the curve, `code` the code that made the steps.
    """

    step: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    window: Means = field(default_factory=dict)
    history: list[Means] = field(default_factory=list)
    code: list[CodeSince] = field(default_factory=list)

    @abstractmethod
    def parts(self) -> dict[str, StatePart]:
        """Return the parts that have tensors, by name."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of all parts, by `part.name`."""
        held = {part: holder.state_dict() for part, holder in self.parts().items()}
        return {f"{part}.{name}": value for part, named in held.items() for name, value in named.items()}

    def values(self) -> StateValues:
        """Return the counters, the curve so far and the code."""
        return StateValues(**{name: getattr(self, name) for name in StateValues.model_fields})

    def saved(self) -> SavedState:
        """Return the state to be saved."""
        return SavedState(self.tensors(), self.values())

    def restore(self, saved: SavedState) -> None:
        """Restore the saved state exactly; further steps are recorded as made by the current code.

        Each tensor is requested once, in the saved order, and released before the next one.
        """
        parts, tensors = self.parts(), split_parts(saved.tensors)
        if unknown := tensors.keys() - parts.keys():
            raise ValueError(f"{min(unknown)} is unknown")
        for part, holder in parts.items():
            holder.load_state_dict(tensors.get(part, {}))
        current = self.code[-1:]
        for name in StateValues.model_fields:
            setattr(self, name, deepcopy(getattr(saved.values, name)))
        self.code = [*self.code, *current]
        if len(self.code) > 1:
            *before, now = self.code
            same = (now.digest, now.torch) == (before[-1].digest, before[-1].torch)
            self.code = before if same else [*before, now.model_copy(update={"step": self.step})]

    def change_of_code(self) -> tuple[CodeSince, CodeSince] | None:
        """Return the previous and the current code if the code changed at this step, else None."""
        if len(self.code) < 2 or self.code[-1].step != self.step:
            return None
        return self.code[-2], self.code[-1]

    def record(self, means: Means) -> None:
        """Add a finite step's means to the window; count a non-finite step."""
        if all(map(math.isfinite, means.values())):
            self.bad_in_a_row = 0
            for name, value in {**means, "count": 1.0}.items():
                self.window[name] = self.window.get(name, 0.0) + value
        else:
            self.skipped += 1
            self.bad_in_a_row += 1

    def pop_means(self) -> Means:
        """Return the window's means and empty it; no means if no step in it was finite."""
        sums, self.window = self.window, {}
        count = sums.pop("count", 0.0)
        return {name: total / count for name, total in sums.items()}
