"""Guidance: wrappers of a denoiser that are denoisers themselves.

Guidance extrapolates from a worse prediction: D + w·(D − D_worse), where w = 0 is none. The rules of
GUIDANCE_RULES differ in what is worse. A weight is a number, or a (B,) tensor with one for each row.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.process.denoiser import Condition, Denoiser, Prediction, expand, time_tensor
from diffusion.process.noise_process import NoiseProcess
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.settings import SampleSettings
from diffusion.system.devices import to_device
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_NOISE_LEVEL

Weight = Tensor | float

Gradient = Callable[[Tensor, Tensor | float, Condition], Tensor]
"""(x_t (B, C, H, W), time of all or of each row, condition) → s·∇ log p(y|x_t), shaped as x_t."""

Inputs = tuple[Tensor, Tensor | float, Condition]
"""The arguments of a denoiser: x (B, C, H, W), the time of all or of each row, and the condition."""

Pair = Callable[[Inputs, Inputs], tuple[Prediction, Prediction]]
"""(all rows, the guided rows) → the predictions of all rows, and the worse ones of the guided rows."""


def classifier_free(denoiser: Denoiser, weight: Weight, guide: Denoiser | None = None) -> Denoiser:
    """D(x, c) + w·(D(x, c) − D(x, ∅)), so ε = (1+w)·ε(x, c) − w·ε(x, ∅).

    All is computed in one pass, guided rows twice. It needs no `guide`. UsageError on call if the network
    takes no condition.
    """

    def pair(rows: Inputs, guided_rows: Inputs) -> tuple[Prediction, Prediction]:
        (x, t, condition), (x_guided, t_guided, conditioned) = rows, guided_rows
        times = torch.cat([t, t_guided]) if isinstance(t, Tensor) and isinstance(t_guided, Tensor) else t
        conditions = Condition.cat([condition, conditioned.null()])
        both = denoiser(torch.cat([x, x_guided]), times, conditions)
        return both.rows(slice(len(x))), both.rows(slice(len(x), None))

    return extrapolate(denoiser, pair, weight)


def autoguidance(denoiser: Denoiser, weight: Weight, guide: Denoiser | None = None) -> Denoiser:
    """D + w·(D − D_g) of a worse model D_g of the same data: no labels are needed.

    The source is Karras et al. 2024 (2406.02507), sec. 4. Their w is one more: D_g + w·(D − D_g). UsageError
    without a `guide`.
    """
    if guide is None:
        raise UsageError("autoguidance needs a guide: a worse model of the same data")
    worse = guide
    return extrapolate(denoiser, lambda rows, guided_rows: (denoiser(*rows), worse(*guided_rows)), weight)


def extrapolate(denoiser: Denoiser, pair: Pair, weight: Weight) -> Denoiser:
    """Return D + w·(D − D_worse) for x_0 and ε; everything else is that of D.

    A row with weight 0 has no worse prediction; if all have it the denoiser itself is returned. Keep a tensor
    of weights on the CPU, since its values are read.
    """
    weights = torch.as_tensor(weight, dtype=torch.float64)
    is_guided = weights != 0
    if not is_guided.any():
        return denoiser
    rows: slice | Tensor = slice(None) if is_guided.all() else is_guided.nonzero().flatten()
    weights = weights if isinstance(rows, slice) else weights[rows]

    def call(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        times = t[rows] if isinstance(t, Tensor) else t  # before rows are moved
        own: slice | Tensor = rows if isinstance(rows, slice) else to_device(rows, x.device)
        better, worse = pair((x, t, condition), (x[own], times, condition.rows(own)))
        scale = expand(weights, x)

        def combine(good: Tensor, bad: Tensor) -> Tensor:
            mixed = (1 + scale) * good[own] - scale * bad
            return mixed if isinstance(own, slice) else good.index_copy(0, own, mixed)

        return better._replace(x0=combine(better.x0, worse.x0), eps=combine(better.eps, worse.eps))

    return call


def guidance_weight(settings: SampleSettings, process: NoiseProcess, t: Tensor | float) -> float:
    """Return the weight of guidance at a time: w, but 0 outside of an interval (2404.07724, eq. 6).

    It applies where low < σ/α ≤ high. A level above MAX_NOISE_LEVEL, such as that of pure noise, counts as
    that. The paper's w is one more than this project's, which is CFG's: no guidance is 1 there.
    """
    if settings.guidance_interval is None:
        return settings.guidance
    low, high = settings.guidance_interval
    level = min(float(process.noise_level(time_tensor(t))), MAX_NOISE_LEVEL)
    return settings.guidance if low < level <= high else 0.0


def guided(
    denoiser: Denoiser, settings: SampleSettings, process: NoiseProcess, guide: Denoiser | None = None
) -> Denoiser:
    """Wrap a denoiser in the guidance of these settings, by their rule and within their interval.

    With an interval it takes one time for all rows.
    """
    if settings.guidance == 0:
        return denoiser
    everywhere = GUIDANCE_RULES[settings.rule].load()(denoiser, settings.guidance, guide)
    if settings.guidance_interval is None:
        return everywhere

    def in_interval(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        return (everywhere if guidance_weight(settings, process, t) else denoiser)(x, t, condition)

    return in_interval


def classifier_gradient(classifier: Callable[[Tensor, Tensor], Tensor], scale: float) -> Gradient:
    """Return s·∇ log p(y|x_t) of a classifier (x_t, time) → logits (ADM, 2105.05233, sec. 4.1).

    The time is () for all rows or (B,), as `time_tensor`. UsageError on call without labels.
    """

    def gradient(x: Tensor, t: Tensor | float, condition: Condition) -> Tensor:
        if condition.labels is None:
            raise UsageError("a classifier guides towards a class: give one")
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            log_p = classifier(x, time_tensor(t)).float().log_softmax(dim=1)
            chosen = log_p.gather(1, condition.labels[:, None]).sum()
            slope = torch.autograd.grad(chosen, x)[0]
        return scale * slope

    return gradient


def shift_mean(denoiser: Denoiser, gradient: Gradient) -> Denoiser:
    """Shift the mean of each noisy step by Σ times the gradient (ADM alg. 1), for DDPM."""

    def guided(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        return denoiser(x, t, condition)._replace(mean_shift=gradient(x, t, condition))

    return guided


def shift_eps(denoiser: Denoiser, gradient: Gradient, process: NoiseProcess) -> Denoiser:
    """Return ε − σ_t·s·∇ log p(y|x_t) (ADM alg. 2), for DDIM and other solvers of its ODE.

    x̂_0 changes by σ²/α times the gradient; the variance fraction stays that of the network. Where α is 0 the
    image is pure noise, and nothing guides.
    """

    def guided(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        slope = gradient(x, t, condition)
        alpha, sigma = process.alpha_sigma(time_tensor(t))
        of_x0 = torch.where(alpha > 0, sigma.square() / alpha, 0.0)
        prediction = denoiser(x, t, condition)
        return prediction._replace(
            x0=prediction.x0 + expand(of_x0, x) * slope,
            eps=prediction.eps - expand(torch.where(alpha > 0, sigma, 0.0), x) * slope,
        )

    return guided


def without_labels(denoiser: Denoiser) -> Denoiser:
    """Return an unconditional network's denoiser that ignores the labels of a classifier."""
    return lambda x, t, condition: denoiser(x, t, condition.unlabelled())
