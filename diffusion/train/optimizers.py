"""What moves the weights: AdamW (Loshchilov and Hutter 2019, 1711.05101), or Muon (Jordan et al. 2024).

A layer's gradient, seen as a matrix, has a few directions that are far stronger than the rest. Muon makes the
matrix of its momentum orthogonal before it moves the weights, so that they go along all directions alike. Its
steps are as long as AdamW's, as Liu et al. 2025 (2502.16982) scale them.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.train.train_config import OptimisationConfig

QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
LENGTH = 0.2  # the root mean square of a step's numbers at a rate of 1, as AdamW's is while it trains
MIN_MATRIX_SIDE = 8  # rows and columns of what counts as a matrix: fewer have no weak directions


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices (n, r, c) with nearly the singular vectors of those and singular values of 0.7 to 1.2.

    By five steps of Newton and Schulz with a quintic whose slope at 0 is steep. A matrix of zeros stays one.
    """
    if matrices.shape[1] > matrices.shape[2]:
        wide: Tensor = orthogonalize(matrices.mT)
        return wide.mT
    a, b, c = QUINTIC
    x: Tensor = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


def matrix_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that are matrices, each output's weights a row; a class's vector is a row, too."""
    several = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    return [parameter for parameter in several if min(parameter.flatten(1).shape) >= MIN_MATRIX_SIDE]


def make_optimizer(
    train: OptimisationConfig, network: nn.Module, groups: list[dict[str, Any]]
) -> torch.optim.AdamW:
    """The section's optimiser of the groups of the network's weights; the rate is set at every step."""
    told: dict[str, Any] = {"lr": 0.0, "weight_decay": train.weight_decay, "fused": True}
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, **told)
    return Muon(groups, matrix_parameters(network), **told)


class Muon(torch.optim.AdamW):
    """Muon for `matrices`, AdamW for all other parameters of the groups, at the same rate.

    As torch's fused optimisers it looks at `found_inf`, and no host waits to know it: where it is 1, neither
    weights nor moments change.
    """

    def __init__(self, groups: list[dict[str, Any]], matrices: Iterable[nn.Parameter], **told: Any) -> None:
        super().__init__(groups, **told)
        self._matrices = set(matrices)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move all weights by their gradients; those of the matrices are taken away."""
        found = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for same in _by_shape(self._learning(group)):
                self._move(same, group, found)
        super().step(closure)

    def _learning(self, group: dict[str, Any]) -> list[nn.Parameter]:
        return [weight for weight in group["params"] if weight in self._matrices and weight.grad is not None]

    def _move(self, weights: list[nn.Parameter], group: dict[str, Any], found: Tensor | None) -> None:
        """One step of matrices of one shape."""
        gradients = torch.stack([weight.grad.flatten(1) for weight in weights if weight.grad is not None])
        moments = [self._moment(weight) for weight in weights]
        momentum = torch.stack([moment.flatten(1) for moment in moments])
        kept = momentum.new_ones(()) if found is None else 1 - found.to(momentum.dtype)
        gradients = torch.where(kept > 0, gradients, momentum)
        momentum = torch.lerp(momentum, gradients, 1 - MOMENTUM)
        ahead = torch.lerp(gradients, momentum, MOMENTUM)
        way = LENGTH * math.sqrt(max(momentum.shape[1:])) * kept * orthogonalize(ahead)
        for weight, moment, new, by in zip(weights, moments, momentum, way, strict=True):
            moment.copy_(new.view(weight.shape))
            weight.mul_(1 - group["lr"] * group["weight_decay"] * kept)
            weight.sub_(by.view(weight.shape), alpha=group["lr"])
            weight.grad = None

    def _moment(self, weight: nn.Parameter) -> Tensor:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)  # as AdamW's, which looks for it
            state["momentum"] = torch.zeros_like(weight)
        moment: Tensor = state["momentum"]
        return moment


def _by_shape(weights: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    same: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for weight in weights:
        same.setdefault((weight.shape[0], weight[0].numel()), []).append(weight)
    return list(same.values())
