"""Guidance as a wrapper of the network: what comes out has the network's own shape."""

import torch
from torch import Tensor

from diffusion.errors import UsageError
from diffusion.gaussian import Network


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
