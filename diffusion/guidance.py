"""Guidance as a wrapper of the network: what comes out has the network's own shape."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.errors import UsageError
from diffusion.gaussian import Network
from diffusion.schedule import Schedule, at

Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t (B, C, H, W), original timesteps (B,), labels (B,)) → s·∇ log p(y|x_t), shaped as x_t."""


def classifier_free(network: Network, weight: float, null_class: int, channels: int) -> Network:
    """The guided network ε = (1+w)·ε(x, c) − w·ε(x, ∅) (CFG, 2207.12598, eq. 6).

    Only the `channels` channels of ε are guided; v comes from the conditional branch. w = 0 is the network
    itself, one pass a step; w > 0 is one pass on a doubled batch.
    """
    if weight == 0:
        return network

    def guided(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise UsageError("guidance needs class labels: the model is unconditional, so use guidance 0")
        both = torch.cat([labels, torch.full_like(labels, null_class)])
        output = network(torch.cat([x, x]), torch.cat([t, t]), both)
        conditional, unconditional = output.chunk(2)
        eps = (1 + weight) * conditional[:, :channels] - weight * unconditional[:, :channels]
        return torch.cat([eps, conditional[:, channels:]], dim=1)

    return guided


def classifier_gradient(classifier: Callable[[Tensor, Tensor], Tensor], scale: float) -> Gradient:
    """s·∇ log p(y|x_t) of a classifier (x_t, t) → logits of noised images (ADM, 2105.05233, sec. 4.1)."""

    def gradient(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            log_p = classifier(x, t).float().log_softmax(dim=1)
            chosen = log_p.gather(1, labels[:, None]).sum()
            return scale * torch.autograd.grad(chosen, x)[0]

    return gradient


def asked_class(labels: Tensor | None) -> Tensor:
    """The (B,) labels towards which a classifier guides; UsageError when there are none."""
    if labels is None:
        raise UsageError("a classifier guides towards a class: give one")
    return labels


def classifier_guided(network: Network, gradient: Gradient, schedule: Schedule, channels: int) -> Network:
    """The guided network ε − √(1−ᾱ_t)·s·∇ log p(y|x_t) (ADM alg. 2), for DDIM and other solvers of its flow.

    `schedule` is the full process of T steps. v stays the network's own.
    """

    def guided(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        shift = at((1 - schedule.alphas_cumprod).sqrt(), t, x) * gradient(x, t, asked_class(labels))
        output = network(x, t, labels)
        return torch.cat([output[:, :channels] - shift, output[:, channels:]], dim=1)

    return guided


def without_labels(network: Network) -> Network:
    """An unconditional network that lets a classifier have the labels."""
    return lambda x, t, labels: network(x, t, None)
