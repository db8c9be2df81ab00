"""Adaptive projected guidance (APG; Sadat et al. 2025, 2410.02416, alg. 1)."""

import torch
from torch import Tensor

from diffusion.process.denoiser import Prediction, expand, time_tensor
from diffusion.process.noise_process import NoiseProcess
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.guidance import ClassifierFree, GuidedCall, along


class AdaptiveProjected(ClassifierFree):
    """Guidance by x̂_0 + w·(Δ⊥ + η·Δ∥), the parts across and along x̂_0 of the difference Δ to the worse x̂_0.

    Both x̂_0 are clipped if `clip` is true: an error of ε at high noise would stay in the momentum. Δ gets
    momentum, Δ + β·(the one before), and is shortened to the radius r. The paper's w is one more. It is of
    high weights, where the part along x̂_0 saturates colours.
    """

    def __init__(self, settings: SampleSettings, process: NoiseProcess) -> None:
        super().__init__(settings, process)
        self.difference: Tensor | None = None

    def combine(self, call: GuidedCall, better: Prediction, worse: Prediction) -> Prediction:
        """Return the guided prediction; its ε is that of its x̂_0."""
        options = self.options
        good, bad = (one.x0.clamp(-1, 1) if self.settings.clip else one.x0 for one in (better, worse))
        difference = good - bad
        if self.difference is not None:
            difference = difference + options.momentum * self.difference
        self.difference = difference.detach()
        if options.radius is not None:
            norm = torch.linalg.vector_norm(difference, dim=(1, 2, 3), keepdim=True)
            difference = difference * (options.radius / norm).clamp(max=1)
        parallel = along(difference, good)
        change = call.weight * (difference - (1 - options.parallel) * parallel)
        alpha, sigma = self.process.alpha_sigma(time_tensor(call.t))
        eps = better.eps - expand(alpha / sigma, call.x) * change
        return better._replace(x0=better.x0 + change, eps=eps)
