"""Classifier guidance: the gradient of a classifier shifts each step (ADM, 2105.05233)."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion.process.denoiser import Condition, Denoiser, Prediction, expand, expand_times, time_tensor
from diffusion.process.noise_process import NoiseProcess, build_process
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.guides import check_fit
from diffusion.system.errors import UsageError

if TYPE_CHECKING:  # images without a classifier do not depend on the format of model files
    from diffusion.model.model_file import LoadedModel, ModelDescription

Gradient = Callable[[Tensor, Tensor | float, Condition], Tensor]
"""(x_t (B, C, H, W), time of all or of each row, condition) → s·∇ log p(y|x_t), shaped as x_t."""


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


def classifier_guidance(
    artefact: "ModelDescription", settings: SampleSettings, classifier: "LoadedModel"
) -> Callable[[Denoiser], Denoiser]:
    """Return what wraps a denoiser of the model in classifier guidance.

    With η = 1 it is ADM's alg. 1, as DDPM; else alg. 2, which allows any η. UsageError if the classifier does
    not fit the model.
    """
    check_fit(artefact, classifier.artefact, "classifier")
    noise = build_process(classifier.artefact.process)

    def logits(x: Tensor, t: Tensor) -> Tensor:
        received, time = noise.network_input(x, t)
        scores: Tensor = classifier.network(received, expand_times(time, x))
        return scores

    gradient = classifier_gradient(logits, settings.classifier_scale)
    if settings.eta == 1:
        return partial(shift_mean, gradient=gradient)
    return partial(shift_eps, gradient=gradient, process=build_process(artefact.process))
