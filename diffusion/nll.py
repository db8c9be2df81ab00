"""Bits per dimension of a data set under a model: the bound's terms at every t, and the prior's."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.checkpoint import LoadedModel
from diffusion.data.store import Images
from diffusion.gaussian import Network, in_eps, log_variance, predict, prior_term, vlb_terms
from diffusion.images import to_model, to_nchw
from diffusion.random import ImageNoise
from diffusion.schedule import Schedule, predict_x0, q_sample, spaced_timesteps


class Bits(NamedTuple):
    """`total` and `prior` (N,) of each image, `terms` (S,) mean over the images; float64, bits per dimension.

    `timesteps` (S,) are the terms' t. An image's total is the sum of its terms and its prior.
    """

    timesteps: Tensor
    terms: Tensor
    prior: Tensor
    total: Tensor


@torch.no_grad()
def bits_per_dimension(
    loaded: LoadedModel,
    images: Images,
    labels: Tensor | None,
    *,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Bits:
    """The variational bound of uint8 images (N, H, W, C) with their labels (iDDPM sec. 3, in bits).

    One pass over all T, or over `steps` of them spread evenly, whose process has a bound of its own. Image
    i's noise comes from (seed, i) alone. The network runs in float32; x̂_0 is clipped to [−1, 1].
    `progress` gets (done, total) network passes of an image.
    """
    process = loaded.artefact.process
    network = in_eps(loaded.network, process)
    timesteps = spaced_timesteps("uniform", steps or process.timesteps, process.timesteps)
    schedule = Schedule.named(process.schedule, process.timesteps).spaced(timesteps)
    device = next(loaded.network.parameters()).device
    terms, priors, totals = torch.zeros(len(schedule), dtype=torch.float64), [], []
    for start in range(0, len(images), batch_size):
        x_0 = to_model(to_nchw(images[start : start + batch_size]).to(device))
        wanted = None if labels is None else labels[start : start + batch_size].to(device)
        noise = ImageNoise(seed, range(start, start + len(x_0)), (x_0.shape[1], *x_0.shape[2:]))
        prior = prior_term(schedule, x_0).double().cpu()
        total = prior.clone()
        for i in range(len(schedule)):
            term = _term(network, process.variance, schedule, x_0, i, noise.draw().to(device), wanted)
            terms[i] += term.sum()
            total += term
            if progress:
                progress(start * len(schedule) + (i + 1) * len(x_0), len(images) * len(schedule))
        priors.append(prior)
        totals.append(total)
    return Bits(schedule.timesteps, terms / len(images), torch.cat(priors), torch.cat(totals))


def _term(
    network: Network,
    variance: str,
    schedule: Schedule,
    x_0: Tensor,
    i: int,
    noise: Tensor,
    labels: Tensor | None,
) -> Tensor:
    """(B,) terms of the bound at index i, float64 on the CPU."""
    index = torch.full((len(x_0),), i)
    x_t = q_sample(schedule, x_0, index, noise)
    eps, v = predict(network, schedule, x_t, index, labels)
    x0_hat = predict_x0(schedule, x_t, index, eps).clamp(-1, 1)
    log_var = log_variance(schedule, variance, v, x_t, index)
    return vlb_terms(schedule, x_0, x_t, index, x0_hat, log_var).double().cpu()
