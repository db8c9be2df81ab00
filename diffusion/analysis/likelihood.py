"""Bits per dimension of images under a model: by the variational bound, or by the probability-flow ODE."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffusion.analysis.ode_likelihood import ODELikelihood
from diffusion.analysis.variational_bound import VariationalBound
from diffusion.images.pixels import to_model, to_nchw
from diffusion.images.store import Images
from diffusion.model.model_file import LoadedModel
from diffusion.process.condition import Condition
from diffusion.process.denoiser import NetworkDenoiser
from diffusion.process.discrete import DiscreteProcess
from diffusion.process.noise import ImageNoise
from diffusion.process.process_registry import build_process
from diffusion.sample.sampler import guard_networks


class Bits(NamedTuple):
    """`total` and `prior` (N,) of each image, `terms` (S,) mean over the images; float64, bits per dimension.

    `times` (S,) are the terms' t. An image's total is the sum of its terms and its prior. The `estimate` is
    the variational bound, vlb, or the likelihood by the probability-flow ODE.
    """

    estimate: Literal["vlb", "ode"]
    times: Tensor
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
    """Return the bits of uint8 images (N, H, W, C), a row of `condition` each.

    For a discrete process they are the variational bound along all T, or `steps` of them. A continuous one
    has no bound: there they are the likelihood by the ODE in `steps`, by default 64. Image i's noise comes
    from (seed, i) alone. The network runs in float32. `progress` gets (done, total) terms of all images.
    NonFiniteError with the image and the term's place, counted from the smallest t, where numbers are NaN
    or infinite.
    """
    likelihood = _likelihood(loaded, steps)
    device, count = next(loaded.network.parameters()).device, len(likelihood.times)
    terms, priors, totals = torch.zeros(count, dtype=torch.float64), [], []
    for start in range(0, len(images), batch_size):
        x_0 = to_model(to_nchw(images[start : start + batch_size]).to(device))
        wanted = condition.rows(slice(start, start + batch_size)).to(device)
        noise = ImageNoise(seed, range(start, start + len(x_0)), (x_0.shape[1], *x_0.shape[2:]))
        guard = guard_networks({"model": loaded.network}, False, _counted_from(start))
        parts: list[Tensor] = []
        for part in likelihood.terms(x_0, noise, wanted, guard):
            parts.append(part.cpu().double())
            if progress and len(parts) <= count:
                progress(start * count + len(parts) * len(x_0), len(images) * count)
        guard.raise_pending()
        terms += torch.stack(parts[:-1]).sum(1)
        priors.append(parts[-1])
        totals.append(torch.stack(parts).sum(0))
    return Bits(likelihood.name, likelihood.times, terms / len(images), torch.cat(priors), torch.cat(totals))


def _likelihood(loaded: LoadedModel, steps: int | None) -> VariationalBound | ODELikelihood:
    """Return the estimate that the process of the model allows."""
    process = build_process(loaded.artefact.process)
    denoiser = NetworkDenoiser(loaded.network, process)
    if isinstance(process, DiscreteProcess):
        return VariationalBound(denoiser, process, steps)
    return ODELikelihood(denoiser, steps)


def _counted_from(start: int) -> Callable[[int], str]:
    """What the rows of a batch are called that begins at image `start`."""
    return lambda row: f"image {start + row}"
