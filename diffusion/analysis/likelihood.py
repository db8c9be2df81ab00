"""Bits per dimension of a data set under a model: the bound's terms at every t, and the prior's."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.images.pixels import to_model, to_nchw
from diffusion.images.store import Images
from diffusion.model.model_file import LoadedModel
from diffusion.process.condition import Condition
from diffusion.process.denoiser import NetworkDenoiser
from diffusion.process.discrete import require_discrete
from diffusion.process.losses import log_variance, prior_term, vlb_terms
from diffusion.process.noise import ImageNoise
from diffusion.process.process_registry import build_process
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.spacing import spaced_timesteps
from diffusion.sample.sampler import NaNGuard, guard_networks


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
    condition: Condition,
    *,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Bits:
    """The variational bound of uint8 images (N, H, W, C) (iDDPM sec. 3, in bits), a row of `condition` each.

    One pass over all T, or over `steps` of them spread evenly, which is a process with its own bound. Image
    i's noise comes from (seed, i) alone. The network runs in float32; x̂_0 is clipped to [−1, 1].
    `progress` gets (done, total) network passes of an image. NonFiniteError with the image
    and the term's place, counted from t = 0, where numbers are NaN or infinite.
    """
    process = require_discrete(build_process(loaded.artefact.process), "the variational bound")
    denoiser = NetworkDenoiser(loaded.network, process)
    grid = process.grid(spaced_timesteps("uniform", steps or process.timesteps, process.timesteps))
    device = next(loaded.network.parameters()).device
    terms, priors, totals = torch.zeros(len(grid), dtype=torch.float64), [], []
    for start in range(0, len(images), batch_size):
        x_0 = to_model(to_nchw(images[start : start + batch_size]).to(device))
        wanted = condition.rows(slice(start, start + batch_size)).to(device)
        noise = ImageNoise(seed, range(start, start + len(x_0)), (x_0.shape[1], *x_0.shape[2:]))
        guard = guard_networks({"model": loaded.network}, False, _counted_from(start))
        prior = prior_term(grid, x_0).cpu().double()
        total = prior.clone()
        for i in range(len(grid)):
            term = _term(denoiser, grid, x_0, i, noise.draw().to(device), wanted, guard)
            terms[i] += term.sum()
            total += term
            if progress:
                progress(start * len(grid) + (i + 1) * len(x_0), len(images) * len(grid))
        guard.raise_pending()
        priors.append(prior)
        totals.append(total)
    return Bits(grid.times, terms / len(images), torch.cat(priors), torch.cat(totals))


def _counted_from(start: int) -> Callable[[int], str]:
    """What the rows of a batch are called that begins at image `start`."""
    return lambda row: f"image {start + row}"


def _term(
    denoiser: NetworkDenoiser,
    grid: TimeGrid,
    x_0: Tensor,
    i: int,
    noise: Tensor,
    condition: Condition,
    guard: NaNGuard,
) -> Tensor:
    """(B,) terms of the bound at index i, float64 on the CPU."""
    index, process = torch.full((len(x_0),), i), denoiser.process
    variance = require_discrete(process, "the variational bound").config.variance
    x_t = process.q_sample(x_0, grid.times[i], noise)
    t = grid.times[i].item()
    prediction = denoiser(x_t, t, condition)
    log_var = log_variance(grid, variance, prediction.variance_fraction, x_t, index)
    term = vlb_terms(grid, x_0, x_t, index, prediction.x0.clamp(-1, 1), log_var)
    guard.check(i + 1, t, *prediction, term)
    return term.cpu().double()
