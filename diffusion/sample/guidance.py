"""Guidance: wrappers of a denoiser that are denoisers themselves, and the networks that guide.

Guidance extrapolates from a worse prediction: D + w·(D − D_worse), where w = 0 is none. The rules of
GUIDANCE_RULES differ in what is worse. A weight is a number, or a (B,) tensor with one for each row.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from diffusion.images.image_size import format_size
from diffusion.process.denoiser import Condition, Denoiser, Prediction, expand, expand_times, time_tensor
from diffusion.process.noise_process import NoiseProcess, build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.settings import SampleSettings
from diffusion.system.devices import to_device
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_NOISE_LEVEL

if TYPE_CHECKING:  # images depend neither on the format of model files nor, without one, on a classifier
    from diffusion.model.model_file import LoadedModel, ModelDescription

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
    """Return the weight of guidance at a time: w, but 0 outside of an interval (2404.07724).

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
    everywhere: Denoiser = GUIDANCE_RULES[settings.rule].load()(denoiser, settings.guidance, guide)
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


class Guides(NamedTuple):
    """What guides a model: the `model` of autoguidance, and a `classifier`."""

    model: "LoadedModel | None" = None
    classifier: "LoadedModel | None" = None

    def networks(self, loaded: "LoadedModel") -> dict[str, torch.nn.Module]:
        """Return all networks by their names in messages; `loaded` is the guided model."""
        parts = {"model": loaded, "guide": self.model, "classifier": self.classifier}
        return {name: part.network for name, part in parts.items() if part is not None}

    def labelled(self, loaded: "LoadedModel") -> "ModelDescription":
        """Return what the labels are of: the model, or the classifier of a model without classes."""
        if self.classifier is None or loaded.artefact.network.num_classes:
            return loaded.artefact
        return self.classifier.artefact


NO_GUIDES = Guides()


def check_guides(settings: SampleSettings, guides: Guides) -> None:
    """Raise UsageError if a network is missing that the settings name."""
    if settings.needs_guide and guides.model is None:
        raise UsageError(f"guidance_rule {settings.rule} needs the model of guide {settings.guide}")
    if settings.has_classifier and guides.classifier is None:
        raise UsageError(f"classifier_scale needs the network of classifier {settings.classifier}")


def check_served_guide(settings: SampleSettings, guide: str | None, model: str) -> None:
    """Raise UsageError if the settings need another guide than the only one that a server has loaded."""
    if settings.needs_guide and settings.guide != guide:
        known = "no guide" if guide is None else f"the guide {guide}"
        raise UsageError(f"{model} is served with {known}, not with {settings.guide}")


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


def check_fit(artefact: "ModelDescription", other: "ModelDescription", name: str) -> None:
    """Raise UsageError unless a guide or classifier fits the model's images, noise and, if any, classes."""
    ours, theirs = artefact.network, other.network
    if ours.shape != theirs.shape:
        raise UsageError(
            f"the {name} takes {format_size(theirs.pixel_shape)} images, "
            f"the model makes {format_size(ours.pixel_shape)}"
        )
    grids = [build_process(one.process).probe_grid() for one in (artefact, other)]
    tables = ([grid.times, grid.alpha, grid.sigma] for grid in grids)
    if not all(torch.equal(a, b) for a, b in zip(*tables, strict=True)):
        raise UsageError(
            f"the {name} was trained with the noise of {_describe_noise(other.process)}, "
            f"the model with that of {_describe_noise(artefact.process)}"
        )
    if name == "guide" and theirs.num_classes and not ours.num_classes:
        raise UsageError("the guide needs classes, and the model has none")
    if ours.num_classes and theirs.num_classes and artefact.data.classes != other.data.classes:
        raise UsageError(f"the {name} was trained on other classes than the model")


def _describe_noise(process: ProcessConfig) -> str:
    """Return the schedule with its own options."""
    common = {*ProcessConfig.model_fields, "variance"}
    own = [name for name in type(process).model_fields if name not in common]
    return f"{process.schedule} ({', '.join(f'{name} {getattr(process, name)}' for name in own)})"
