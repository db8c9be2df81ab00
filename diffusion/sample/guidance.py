"""Guidance: wrappers of a denoiser that are denoisers themselves.

A weight is a number, or a (B,) tensor with one for each row.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.process.condition import Condition
from diffusion.process.denoiser import Denoiser, Prediction, expand, expand_times
from diffusion.process.noise_process import NoiseProcess
from diffusion.protocol.settings import SampleSettings
from diffusion.system.devices import to_device
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_NOISE_LEVEL

Weight = Tensor | float

Gradient = Callable[[Tensor, Tensor | float, Condition], Tensor]
"""(x_t (B, C, H, W), time of all or of each row, condition) → s·∇ log p(y|x_t), shaped as x_t."""


def classifier_free(denoiser: Denoiser, weight: Weight) -> Denoiser:
    """ε = (1+w)·ε(x, c) − w·ε(x, ∅), and x̂_0 likewise (CFG, 2207.12598, eq. 6).

    Everything else is that of the conditional branch. A row with weight 0 is computed once, the others twice,
    all in one pass; for weight 0 the denoiser itself is returned. Keep a tensor of weights on the CPU, since
    its values are read. UsageError on call if the network takes no condition.
    """
    if not isinstance(weight, Tensor):
        if weight == 0:
            return denoiser
        return _Guided(denoiser, slice(None), torch.tensor(weight, dtype=torch.float64))
    rows = weight.nonzero().flatten()
    if len(rows) == len(weight):
        return _Guided(denoiser, slice(None), weight)
    return _Guided(denoiser, rows, weight[rows]) if len(rows) else denoiser


def in_interval(interval: tuple[float, float] | None, level: float) -> bool:
    """Return whether guidance applies at a noise level: low < σ/α ≤ high, and everywhere without an interval.

    A level above MAX_NOISE_LEVEL, such as that of pure noise, counts as that.
    """
    return interval is None or interval[0] < min(level, MAX_NOISE_LEVEL) <= interval[1]


def guidance_weight(settings: SampleSettings, process: NoiseProcess, t: float) -> float:
    """Return the weight of guidance at a time: w, but 0 outside of an interval (2404.07724, eq. 6).

    The paper's w is one more than this project's, which is CFG's: no guidance is 1 there.
    """
    interval = settings.guidance_interval
    if interval is None or in_interval(interval, float(process.noise_level(torch.tensor(t)))):
        return settings.guidance
    return 0.0


def guided(denoiser: Denoiser, settings: SampleSettings, process: NoiseProcess) -> Denoiser:
    """Wrap a denoiser in the classifier-free guidance of these settings."""
    if settings.guidance == 0 or settings.guidance_interval is None:
        return classifier_free(denoiser, settings.guidance)
    return interval_guidance(denoiser, settings.guidance, settings.guidance_interval, process)


def interval_guidance(
    denoiser: Denoiser, weight: float, interval: tuple[float, float], process: NoiseProcess
) -> Denoiser:
    """Guide where low < σ/α ≤ high (2404.07724, eq. 6); elsewhere call the denoiser once a row."""
    everywhere = classifier_free(denoiser, weight)

    def call(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        if not isinstance(t, Tensor):
            level = float(process.noise_level(torch.tensor(t)))
            return (everywhere if in_interval(interval, level) else denoiser)(x, t, condition)
        levels = process.noise_level(t).tolist()
        weights = [weight if in_interval(interval, level) else 0.0 for level in levels]
        return classifier_free(denoiser, torch.tensor(weights, dtype=torch.float64))(x, t, condition)

    return call


class _Guided:
    """A denoiser with guidance of `rows` of every batch, by `weight`."""

    def __init__(self, denoiser: Denoiser, rows: slice | Tensor, weight: Tensor) -> None:
        self._denoiser, self._rows, self._weight = denoiser, rows, weight

    def __call__(self, x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        rows, count = self._rows, len(x)
        times = torch.cat([t, t[rows]]) if isinstance(t, Tensor) else t  # before rows are moved
        rows = rows if isinstance(rows, slice) else to_device(rows, x.device)
        conditions = Condition.cat([condition, condition.rows(rows).null()])
        both = self._denoiser(torch.cat([x, x[rows]]), times, conditions)
        conditional, free = both.rows(slice(count)), both.rows(slice(count, None))
        weight = expand(self._weight, x)
        return conditional._replace(
            x0=_combine(conditional.x0, free.x0, rows, weight),
            eps=_combine(conditional.eps, free.eps, rows, weight),
        )


def _combine(conditional: Tensor, free: Tensor, rows: slice | Tensor, weight: Tensor) -> Tensor:
    """Return (1+w)·conditional − w·free at the rows, and `conditional` at the others."""
    guided = (1 + weight) * conditional[rows] - weight * free
    if isinstance(rows, slice):
        return guided
    return conditional.index_copy(0, rows, guided)


def classifier_gradient(classifier: Callable[[Tensor, Tensor], Tensor], scale: Weight) -> Gradient:
    """Return s·∇ log p(y|x_t) of a classifier (x_t, times) → logits (ADM, 2105.05233, sec. 4.1).

    UsageError on call without labels.
    """

    def gradient(x: Tensor, t: Tensor | float, condition: Condition) -> Tensor:
        if condition.labels is None:
            raise UsageError("a classifier guides towards a class: give one")
        times = expand_times(t, x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            log_p = classifier(x, times).float().log_softmax(dim=1)
            chosen = log_p.gather(1, condition.labels[:, None]).sum()
            slope = torch.autograd.grad(chosen, x)[0]
        return (expand(scale, x) if isinstance(scale, Tensor) else scale) * slope

    return gradient


def shift_mean(denoiser: Denoiser, gradient: Gradient) -> Denoiser:
    """Shift the mean of each noisy step by Σ times the gradient (ADM alg. 1), for DDPM."""

    def guided(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        return denoiser(x, t, condition)._replace(mean_shift=gradient(x, t, condition))

    return guided


def shift_eps(denoiser: Denoiser, gradient: Gradient, process: NoiseProcess) -> Denoiser:
    """Return ε − σ_t·s·∇ log p(y|x_t) (ADM alg. 2), for DDIM and other solvers of its ODE.

    x̂_0 changes by σ²/α times the gradient; the variance fraction stays that of the network.
    """

    def guided(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        slope = gradient(x, t, condition)
        alpha, sigma = process.alpha_sigma(t if isinstance(t, Tensor) else torch.tensor(t))
        prediction = denoiser(x, t, condition)
        return prediction._replace(
            x0=prediction.x0 + expand(sigma.square() / alpha, x) * slope,
            eps=prediction.eps - expand(sigma, x) * slope,
        )

    return guided


def without_labels(denoiser: Denoiser) -> Denoiser:
    """Return an unconditional network's denoiser that ignores the labels of a classifier."""
    return lambda x, t, condition: denoiser(x, t, condition.unlabelled())
