"""DDIM's encoding of images as noise, and interpolation between codes (2010.02502, sec. 4.3, app. D.5)."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.gaussian import Network, predict
from diffusion.schedule import Schedule, at


@torch.no_grad()
def encode(
    network: Network,
    schedule: Schedule,
    x_0: Tensor,
    labels: Tensor | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """x_T (B, C, H, W) from which the walk with η = 0 and no clipping comes back to `x_0`.

    The deterministic step reversed (DDIM eq. 14), so exact only as S grows: ε is asked where the step starts.
    The first step starts at the image itself, which counts as its noisiest neighbour, the first timestep.
    `callback` gets (done, total) steps.
    """
    x = x_0
    total = len(schedule)
    for i in range(total):
        index = torch.full((len(x),), i)
        eps, _ = predict(network, schedule, x, (index - 1).clamp(min=0), labels)
        start, end = schedule.alphas_cumprod_prev, schedule.alphas_cumprod
        x0_hat = (x - at((1 - start).sqrt(), index, x) * eps) / at(start.sqrt(), index, x)
        x = at(end.sqrt(), index, x) * x0_hat + at((1 - end).sqrt(), index, x) * eps
        if callback:
            callback(i + 1, total)
    return x


def slerp(first: Tensor, second: Tensor, fraction: float) -> Tensor:
    """Spherical interpolation of codes, image by image: `first` at 0, `second` at 1 (DDIM app. D.5).

    Codes are nearly orthogonal Gaussians; between them this keeps the length that the network expects.
    Parallel codes are interpolated linearly.
    """
    a, b = first.flatten(1), second.flatten(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    angle = cosine.clamp(-1, 1).acos()[:, None]
    sine = angle.sin()
    parallel = sine < 1e-6
    of_a = torch.where(parallel, 1 - fraction, ((1 - fraction) * angle).sin() / sine)
    of_b = torch.where(parallel, fraction, (fraction * angle).sin() / sine)
    return (of_a * a + of_b * b).reshape(first.shape)
