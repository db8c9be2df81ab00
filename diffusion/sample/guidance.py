"""Guidance: rules that combine a prediction with a worse one, and the networks that guide.

Guidance extrapolates from a worse prediction: D + w·(D − D_worse), where w = 0 is none. The rules of
GUIDANCE_RULES differ in what is worse, and in how the two are combined.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from diffusion.images.image_size import format_size, height_and_width
from diffusion.layout import HELD_OUT
from diffusion.process.denoiser import Condition, Denoiser, Prediction, expand, expand_times, time_tensor
from diffusion.process.noise_process import NoiseProcess, build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.low_res import RealImages, open_real_images
from diffusion.system.devices import to_device
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_NOISE_LEVEL

if TYPE_CHECKING:  # images depend neither on the format of model files nor, without one, on a classifier
    from diffusion.model.model_file import LoadedModel, ModelDescription
    from diffusion.model.network_registry import NetworkSpec

Gradient = Callable[[Tensor, Tensor | float, Condition], Tensor]
"""(x_t (B, C, H, W), time of all or of each row, condition) → s·∇ log p(y|x_t), shaped as x_t."""

Inputs = tuple[Tensor, Tensor | float, Condition]
"""The arguments of a denoiser: x (B, C, H, W), the time of all or of each row, and the condition."""


class GuidedCall(NamedTuple):
    """A call of the denoiser for the guided images of one trajectory.

    x (B, C, H, W), their time, one for all or (B,), the weight w > 0, and the number of the trajectory's
    calls before this one, guided or not.
    """

    x: Tensor
    t: Tensor | float
    weight: float
    number: int


class Guidance:
    """A rule of guidance for the images of one trajectory: what is worse, and how to combine the two.

    A new rule is a subclass. Its objects may keep state from call to call, such as the last difference, since
    no two trajectories share one. UsageError if the rule does not fit the process.
    """

    def __init__(self, settings: SampleSettings, process: NoiseProcess) -> None:
        self.settings, self.process = settings, process
        self.options: Any = GUIDANCE_RULES[settings.rule].parse(settings.guidance_rule_options)
        self.calls = 0

    def predictions(
        self, denoiser: Denoiser, guide: Denoiser | None, rows: Inputs, guided_rows: Inputs
    ) -> tuple[Prediction, Prediction]:
        """Return the predictions of all rows, and the worse ones of the guided rows of all trajectories."""
        raise NotImplementedError

    def combine(self, call: GuidedCall, better: Prediction, worse: Prediction) -> Prediction:
        """Return the guided prediction of this trajectory's images: D + w·(D − D_worse)."""
        return extrapolate(better, worse, call.weight)

    def weight(self, t: Tensor | float) -> float:
        """Return the weight at a time."""
        return guidance_weight(self.settings, self.process, t)


class ClassifierFree(Guidance):
    """CFG: D(x, c) + w·(D(x, c) − D(x, ∅)), so ε = (1+w)·ε(x, c) − w·ε(x, ∅) (2207.12598, eq. 6).

    All is computed in one pass, guided rows twice. It needs no guide. UsageError on call if the network takes
    no condition.
    """

    def predictions(
        self, denoiser: Denoiser, guide: Denoiser | None, rows: Inputs, guided_rows: Inputs
    ) -> tuple[Prediction, Prediction]:
        """Return the predictions with, and without the condition."""
        (x, t, condition), (x_guided, t_guided, conditioned) = rows, guided_rows
        times = torch.cat([t, t_guided]) if isinstance(t, Tensor) and isinstance(t_guided, Tensor) else t
        conditions = Condition.cat([condition, conditioned.null()])
        both = denoiser(torch.cat([x, x_guided]), times, conditions)
        return both.rows(slice(len(x))), both.rows(slice(len(x), None))


class Autoguidance(Guidance):
    """D + w·(D − D_g) of a worse model D_g of the same data: no labels are needed.

    The source is Karras et al. 2024 (2406.02507), sec. 4. Their w is one more: D_g + w·(D − D_g). UsageError
    on call without a guide.
    """

    def predictions(
        self, denoiser: Denoiser, guide: Denoiser | None, rows: Inputs, guided_rows: Inputs
    ) -> tuple[Prediction, Prediction]:
        """Return the predictions of the model and of the guide."""
        if guide is None:
            raise UsageError("autoguidance needs a guide: a worse model of the same data")
        return denoiser(*rows), guide(*guided_rows)


def extrapolate(better: Prediction, worse: Prediction, weight: float) -> Prediction:
    """Return D + w·(D − D_worse) for x_0 and ε; everything else is that of D."""
    w = torch.tensor(weight, dtype=better.x0.dtype)
    x0, eps = ((1 + w) * good - w * bad for good, bad in zip(better[:2], worse[:2], strict=True))
    return better._replace(x0=x0, eps=eps)


def along(of: Tensor, direction: Tensor) -> Tensor:
    """Return the part of each image (B, C, H, W) along its direction."""
    pixels = (1, 2, 3)
    share = (of * direction).sum(pixels, keepdim=True) / direction.square().sum(pixels, keepdim=True)
    return share * direction


class GuidedRows(NamedTuple):
    """The rows of one trajectory in a call, the rule of its images, and the weight of this call."""

    rows: slice
    rule: Guidance
    weight: float


def guide_rows(denoiser: Denoiser, guide: Denoiser | None, parts: Sequence[GuidedRows]) -> Denoiser:
    """Return the denoiser of a call with these parts, which have all rows in order.

    A part with weight 0 has no worse prediction; if all have it the denoiser itself is called. The others
    have rules of one class. A time of each row is on the CPU.
    """

    def call(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        for part in parts:
            part.rule.calls += 1
        guided = [part for part in parts if part.weight]
        if not guided:
            return denoiser(x, t, condition)

        def times(index: slice | Tensor) -> Tensor | float:
            return t[index] if isinstance(t, Tensor) and t.ndim else t

        rows = torch.cat([torch.arange(len(x))[part.rows] for part in guided])
        own: slice | Tensor = slice(None) if len(rows) == len(x) else to_device(rows, x.device)
        of_rows = (x[own], times(rows), condition.rows(own))
        better, worse = guided[0].rule.predictions(denoiser, guide, (x, t, condition), of_rows)
        results, start = [], 0
        for part in parts:
            result = better.rows(part.rows)
            if part.weight:
                end = start + len(result.x0)
                inputs = GuidedCall(x[part.rows], times(part.rows), part.weight, part.rule.calls - 1)
                result, start = part.rule.combine(inputs, result, worse.rows(slice(start, end))), end
            results.append(result)
        return results[0] if len(results) == 1 else Prediction.cat(results)

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


def build_guidance(settings: SampleSettings, process: NoiseProcess) -> Guidance:
    """Return the rule of these settings for one trajectory; UsageError if it does not fit the process."""
    rule: Guidance = GUIDANCE_RULES[settings.rule].load()(settings, process)
    return rule


def guided(
    denoiser: Denoiser, settings: SampleSettings, process: NoiseProcess, guide: Denoiser | None = None
) -> Denoiser:
    """Wrap a denoiser in the guidance of these settings, for one trajectory, within their interval.

    With an interval it takes one time for all rows.
    """
    if settings.guidance == 0:
        return denoiser
    rule = build_guidance(settings, process)

    def call(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        return guide_rows(denoiser, guide, [GuidedRows(slice(None), rule, rule.weight(t))])(x, t, condition)

    return call


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
    """What a model is sampled with: the `model` of autoguidance, a `classifier`, and what it enlarges.

    It enlarges the images that a `base` model makes, or `real` ones.
    """

    model: "LoadedModel | None" = None
    classifier: "LoadedModel | None" = None
    base: "LoadedModel | None" = None
    real: RealImages | None = None

    def networks(self, loaded: "LoadedModel") -> dict[str, torch.nn.Module]:
        """Return all networks by their names in messages; `loaded` is the guided model."""
        parts = {"model": loaded, "guide": self.model, "classifier": self.classifier}
        return {name: part.network for name, part in parts.items() if part is not None}

    def labelled(self, loaded: "LoadedModel") -> "ModelDescription":
        """Return what the labels are of: the model, or the base or classifier of a model without classes."""
        others = (one.artefact for one in (self.base, self.classifier) if one is not None)
        return labelled_model([loaded.artefact, *others])


def held_out(network: "NetworkSpec") -> Guides:
    """Return the held-out images for a network that enlarges some; nothing for another one."""
    return Guides(real=None if network.low_res is None else open_real_images(HELD_OUT))


def labelled_model(models: "Sequence[ModelDescription]") -> "ModelDescription":
    """Return the first one with classes, or the first one without any."""
    return next((one for one in models if one.network.num_classes), models[0])


NO_GUIDES = Guides()


def check_guides(settings: SampleSettings, guides: Guides) -> None:
    """Raise UsageError if a network is missing that the settings name."""
    if settings.needs_guide and guides.model is None:
        raise UsageError(f"guidance_rule {settings.rule} needs the model of guide {settings.guide}")
    if settings.has_classifier and guides.classifier is None:
        raise UsageError(f"classifier_scale needs the network of classifier {settings.classifier}")
    if settings.base is not None and guides.base is None:
        raise UsageError(f"the cascade needs the model of base {settings.base}")


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
    if name == "guide" and (ours.low_res, ours.cond_noise) != (theirs.low_res, theirs.cond_noise):
        raise UsageError("the guide takes other low-resolution images (low_res, cond_noise) than the model")
    if name == "guide" and theirs.num_classes and not ours.num_classes:
        raise UsageError("the guide needs classes, and the model has none")
    if ours.num_classes and theirs.num_classes and artefact.data.classes != other.data.classes:
        raise UsageError(f"the {name} was trained on other classes than the model")


def check_base(artefact: "ModelDescription", base: "ModelDescription") -> None:
    """Raise UsageError unless the images of a base model are those that the model enlarges."""
    ours, theirs = artefact.network, base.network
    if ours.low_res is None:
        raise UsageError("sample.base makes images to enlarge, and the model enlarges none: leave it out")
    if (*height_and_width(ours.low_res), ours.in_channels) != theirs.pixel_shape:
        wanted = format_size((*height_and_width(ours.low_res), ours.in_channels))
        found = f"the base makes {format_size(theirs.pixel_shape)} images"
        raise UsageError(f"{found}, the model enlarges {wanted}")
    if theirs.low_res is not None:
        raise UsageError("the base enlarges images itself: give a model that makes images from noise")
    if ours.num_classes and theirs.num_classes and artefact.data.classes != base.data.classes:
        raise UsageError("the base was trained on other classes than the model")


def _describe_noise(process: ProcessConfig) -> str:
    """Return the schedule with its own options."""
    common = {*ProcessConfig.model_fields, "variance"}
    own = [name for name in type(process).model_fields if name not in common]
    return f"{process.schedule} ({', '.join(f'{name} {getattr(process, name)}' for name in own)})"
