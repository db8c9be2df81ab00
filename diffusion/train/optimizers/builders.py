"""The optimisers: the entries of OPTIMIZERS. AdamW and RAdam are torch's.

A layer's gradient, as a matrix, has a few directions that are far stronger than the rest. Muon orthogonalises
the momentum before the update, so that all directions move alike. Its updates are scaled to AdamW's size
(Jordan et al. 2024; Liu et al. 2025, 2502.16982).
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diffusion.train.optimizers.optimizer_options import AdamOptions, MuonOptions

QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MIN_WIDE = 2  # columns per row from which it is faster to multiply the iterations' factors first
UPDATE_RMS = 0.2  # of an update at a learning rate of 1, as typical for AdamW
MIN_MATRIX_SIDE = 8  # rows and columns of a matrix: smaller ones have no weak directions


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return matrices (n, r, c) with nearly the same singular vectors and singular values of 0.7 to 1.2.

    It makes five Newton-Schulz steps x ← (a + b·xxᵀ + c·(xxᵀ)²)·x with a quintic that is steep at 0. A zero
    matrix stays zero. The factors commute with xxᵀ. So for a wide matrix they are multiplied first, as r×r
    matrices: a third of the time for a 3×3 convolution, equal except for rounding.
    """
    if matrices.shape[1] > matrices.shape[2]:
        wide: Tensor = orthogonalize(matrices.mT)
        return wide.mT
    x: Tensor = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if x.shape[2] < MIN_WIDE * x.shape[1]:
        for _ in range(ITERATIONS):
            x = _factor(x @ x.mT) @ x
        return x
    square = x @ x.mT
    product = _factor(square)
    factor = product
    for _ in range(ITERATIONS - 1):
        square = factor @ square @ factor
        factor = _factor(square)
        product = factor @ product
    return product @ x


def _factor(square: Tensor) -> Tensor:
    """Return a + b·s + c·s² of symmetric matrices s (n, r, r)."""
    a, b, c = QUINTIC
    factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor


def matrix_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return hidden layers' matrices, a row per output: without embeddings and the first convolution.

    In networks with layers of their own these are the attributes `classes` and `stem`.
    """
    first = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    named = [getattr(network, name, None) for name in ("stem", "classes")]
    outer = [one for one in network.modules() if isinstance(one, nn.Embedding) or one in (first, *named)]
    left_out = {id(parameter) for layer in outer for parameter in layer.parameters()}
    hidden = [one for one in network.parameters() if one.ndim > 1 and id(one) not in left_out]
    return [parameter for parameter in hidden if min(parameter.flatten(1).shape) >= MIN_MATRIX_SIDE]


def adamw(groups: list[dict[str, Any]], network: nn.Module, options: AdamOptions) -> Optimizer:
    """Return AdamW, which skips non-finite steps on the device."""
    return torch.optim.AdamW(groups, betas=(options.beta1, options.beta2), eps=options.eps, fused=True)


def radam(groups: list[dict[str, Any]], network: nn.Module, options: AdamOptions) -> Optimizer:
    """Return RAdam with decoupled weight decay; it needs no warm-up."""
    on_gpu = any(weight.is_cuda for weight in network.parameters())
    betas = options.beta1, options.beta2
    return torch.optim.RAdam(
        groups, betas=betas, eps=options.eps, decoupled_weight_decay=True, capturable=on_gpu
    )


def muon(groups: list[dict[str, Any]], network: nn.Module, options: MuonOptions) -> Optimizer:
    """Return Muon for the network's matrices, with AdamW for all other parameters."""
    return Muon(groups, matrix_parameters(network), options)


class Muon(Optimizer):
    """Muon for `matrices`, AdamW for others, with one rate; skips steps by `found_inf`, as torch does.

    The state of AdamW is in `state` too.
    """

    _step_supports_amp_scaling = True  # torch's flag of an optimiser that reads found_inf

    def __init__(
        self, groups: list[dict[str, Any]], matrices: Iterable[nn.Parameter], options: MuonOptions
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self._matrices, self._momentum = set(matrices), options.momentum
        others = [
            [one for one in group["params"] if one not in self._matrices] for group in self.param_groups
        ]
        self._adamw = adamw([{"params": weights} for weights in others], nn.Module(), options)
        self._adamw.state = self.state

    def check_moments(self) -> None:
        """Raise ValueError if a restored state is that of other matrices."""
        for weight, moments in self.state.items():
            if ("momentum" in moments) != (weight in self._matrices):
                raise ValueError("Muon updates other layers in this code than in the state's")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all weights."""
        found = getattr(self, "found_inf", None)
        for group, others in zip(self.param_groups, self._adamw.param_groups, strict=True):
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
            for weight in group["params"]:
                if weight in self._matrices and weight.grad is not None:
                    by_shape.setdefault((weight.shape[0], weight[0].numel()), []).append(weight)
            for weights in by_shape.values():
                self._update(weights, group, found)
            others |= {"lr": group["lr"], "weight_decay": group["weight_decay"]}
        if found is not None:
            self._adamw.found_inf = found  # type: ignore[attr-defined]
        self._adamw.step()

    def _update(self, weights: list[nn.Parameter], group: dict[str, Any], found: Tensor | None) -> None:
        """Update matrices of one shape."""
        gradients = torch.stack([weight.grad.flatten(1) for weight in weights if weight.grad is not None])
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {"momentum": torch.zeros_like(weight)}
        moments = [self.state[weight]["momentum"] for weight in weights]
        momentum = torch.stack([moment.flatten(1) for moment in moments])
        kept = momentum.new_ones(()) if found is None else 1 - found.to(momentum.dtype)
        gradients = torch.where(kept > 0, gradients, momentum)
        momentum = torch.lerp(momentum, gradients, 1 - self._momentum)
        ahead = torch.lerp(gradients, momentum, self._momentum)
        updates = UPDATE_RMS * math.sqrt(max(momentum.shape[1:])) * kept * orthogonalize(ahead)
        for weight, moment, new, update in zip(weights, moments, momentum, updates, strict=True):
            moment.copy_(new.view(weight.shape))
            weight.mul_(1 - group["lr"] * group["weight_decay"] * kept)
            weight.sub_(update.view(weight.shape), alpha=group["lr"])
