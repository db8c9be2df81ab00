"""One reverse step for DDPM, iDDPM and DDIM, and the walk over explicit pairs of timesteps.

Samplers are pure functions of the network, the schedule and the noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from diffusion.errors import UsageError
from diffusion.gaussian import Network, log_variance, predict
from diffusion.guidance import Gradient, asked_class
from diffusion.process_config import Noise
from diffusion.schedule import Schedule, at, predict_eps, predict_x0
from diffusion.settings import Sampler


@dataclass(frozen=True)
class Step:
    """Where a walk stands: `done` of `total` steps, x_t after them, and the x̂_0 they were made from."""

    done: int
    total: int
    x: Tensor
    x0_hat: Tensor


def noise_scale(
    schedule: Schedule, eta: float, noise: Noise, v: Tensor | None, like: Tensor, index: Tensor
) -> Tensor:
    """The standard deviation s of the added noise, broadcastable to `like`.

    small: η√β̃ (DDIM eq. 16). large: η√β (σ̂ of DDIM's Table 1). learned: η√Σ_θ, the spaced Σ of iDDPM sec. 4.
    """
    if noise == "small":
        return eta * at(schedule.posterior_variance.sqrt(), index, like)
    if noise == "large":
        return eta * at(schedule.betas.sqrt(), index, like)
    check_noise(noise, v is not None)
    return eta * torch.exp(0.5 * log_variance(schedule, "learned", v, like, index))


def reverse_step(
    schedule: Schedule,
    x: Tensor,
    index: Tensor,
    eps: Tensor,
    v: Tensor | None,
    *,
    eta: float,
    noise: Noise = "small",
    clip: bool = True,
    z: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step from timestep `index` (B,) to the one before it; returns (x_prev, x̂_0), shapes of `x`.

        x_prev = √ᾱ_prev·x̂_0 + √(1 − ᾱ_prev − σ²)·ε + s·z,   σ = η√β̃   (DDIM eq. 12, 16)

    With `clip`, x̂_0 is clipped to [−1, 1] and ε recomputed from it. `z` None adds no noise.
    """
    x0_hat = predict_x0(schedule, x, index, eps)
    if clip:
        x0_hat = x0_hat.clamp(-1, 1)
        eps = predict_eps(schedule, x, index, x0_hat)
    previous = schedule.alphas_cumprod_prev
    direction = (1 - previous - eta**2 * schedule.posterior_variance).clamp(min=0).sqrt()
    x_prev = at(previous.sqrt(), index, x) * x0_hat + at(direction, index, x) * eps
    if z is not None:
        x_prev = x_prev + noise_scale(schedule, eta, noise, v, x, index) * z
    return x_prev, x0_hat


def check_eta(schedule: Schedule, eta: float) -> None:
    """UsageError when σ² would exceed 1 − ᾱ_prev somewhere along the schedule."""
    if not 0 <= eta <= schedule.largest_eta():
        raise UsageError(f"eta {eta} does not fit {len(schedule)} steps: give 0 to {schedule.eta_limit()}")


def check_noise(noise: Noise, learned: bool) -> None:
    """UsageError when learned noise is asked of a network without a learned variance."""
    if noise == "learned" and not learned:
        raise UsageError("noise learned needs a model with a learned variance; use small or large")


# The module of each sampler, of which only that one is loaded, and counted as what images come from.
SAMPLERS: dict[Sampler, str] = {"ddim": "diffusion.sampling", "dpm-solver++": "diffusion.dpm_solver"}

Update = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""(x, index, ε, v) → (x one timestep earlier, x̂_0)."""


@torch.no_grad()
def sample(
    network: Network,
    schedule: Schedule,
    draw: Callable[[], Tensor],
    *,
    sampler: Sampler = "ddim",
    eta: float = 0.0,
    noise: Noise = "small",
    clip: bool = True,
    labels: Tensor | None = None,
    gradient: Gradient | None = None,
    device: torch.device | str = "cpu",
    callback: Callable[[Step], None] | None = None,
) -> Tensor:
    """Walk from x_T to x_0 along a spaced schedule; returns x_0, (B, C, H, W) on `device`.

    `draw` gives x_T first, then each noisy step's z; with η = 0 it is called once. The last step adds no
    noise. A `gradient` of log p(y|x_t) moves each noisy step's mean by Σ times it (ADM alg. 1).
    UsageError when η is too large for the schedule, or the gradient has no labels.
    """
    check_eta(schedule, eta)
    towards = asked_class(labels) if gradient else None
    x = draw().to(device)

    def ddim(x: Tensor, index: Tensor, eps: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        z = draw().to(device) if eta > 0 and int(index[0]) > 0 else None
        x_prev, x0_hat = reverse_step(schedule, x, index, eps, v, eta=eta, noise=noise, clip=clip, z=z)
        if gradient and towards is not None and z is not None:
            scale = noise_scale(schedule, eta, noise, v, x, index)
            x_prev = x_prev + scale**2 * gradient(x, schedule.timesteps[index].to(x.device), towards)
        return x_prev, x0_hat

    update: Update = ddim if sampler == "ddim" else import_module(SAMPLERS[sampler]).Multistep(schedule, clip)
    total = len(schedule)
    for i in reversed(range(total)):
        index = torch.full((len(x),), i)
        eps, v = predict(network, schedule, x, index, labels)
        x, x0_hat = update(x, index, eps, v)
        if callback:
            callback(Step(total - i, total, x, x0_hat))
    return x
