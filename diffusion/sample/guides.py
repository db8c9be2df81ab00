"""The networks that guide a model, whether they fit it, and guidance by a classifier."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from diffusion.process.denoiser import Denoiser, expand_times
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_registry import ProcessConfig, build_process
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.guidance import classifier_gradient, shift_eps, shift_mean
from diffusion.system.errors import UsageError

if TYPE_CHECKING:  # images depend neither on the format of model files nor, without one, on a classifier
    from diffusion.model.model_file import LoadedModel, ModelDescription


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
    if (ours.image_size, ours.in_channels) != (theirs.image_size, theirs.in_channels):
        raise UsageError(
            f"the {name} takes {theirs.image_size}×{theirs.image_size}×{theirs.in_channels} images, "
            f"the model makes {ours.image_size}×{ours.image_size}×{ours.in_channels}"
        )
    process, noise = build_process(artefact.process), build_process(other.process)
    if not has_same_noise(process, noise):
        raise UsageError(
            f"the {name} was trained with the noise of {_describe_noise(other.process)}, "
            f"the model with that of {_describe_noise(artefact.process)}"
        )
    if name == "guide" and theirs.num_classes and not ours.num_classes:
        raise UsageError("the guide needs classes, and the model has none")
    if ours.num_classes and theirs.num_classes and artefact.data.classes != other.data.classes:
        raise UsageError(f"the {name} was trained on other classes than the model")


def has_same_noise(process: NoiseProcess, other: NoiseProcess) -> bool:
    """Return whether two processes have the same times, with the same α and σ."""
    grids = [(grid.times, grid.alpha, grid.sigma) for grid in (process.probe_grid(), other.probe_grid())]
    return all(torch.equal(ours, theirs) for ours, theirs in zip(*grids, strict=True))


def _describe_noise(process: ProcessConfig) -> str:
    """Return the schedule with its own options."""
    common = {*ProcessConfig.model_fields, "variance"}
    own = [name for name in type(process).model_fields if name not in common]
    return f"{process.schedule} ({', '.join(f'{name} {getattr(process, name)}' for name in own)})"
