"""Images of a model by index: image i depends on the model, the settings and i alone."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from diffusion.images.pixels import to_uint8
from diffusion.model.precision import autocast, is_worth_compiling
from diffusion.process.condition import Condition
from diffusion.process.denoiser import Denoiser, NetworkDenoiser, expand_times
from diffusion.process.noise import ImageNoise
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_registry import ProcessConfig, build_process
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.samplers import SAMPLERS, build_sampler
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.guidance import classifier_gradient, guided, shift_eps, shift_mean, without_labels
from diffusion.sample.sampler import NaNGuard, Step, guard_networks, run_sampler
from diffusion.sample.sampling_steps import check_eta, check_noise, count_nfe, sampling_grid
from diffusion.system.devices import to_device
from diffusion.system.errors import UsageError
from diffusion.system.threads import in_halves, prefetched_draws, splitting_helps

if TYPE_CHECKING:  # images depend neither on the format of model files nor, without one, on a classifier
    from diffusion.model.classifier import LoadedClassifier
    from diffusion.model.model_file import LoadedModel, ModelDescription

_Draw = Callable[[], Tensor]
_Callback = Callable[[Step], object]
_Generator = Callable[[_Draw, Condition, _Callback | None, NaNGuard], Tensor]
"""(draw, condition, callback, guard) → images, as `generate_from_noise`."""


class Guides(NamedTuple):
    """What guides a model: the `model` of autoguidance, and a `classifier`."""

    model: "LoadedModel | None" = None
    classifier: "LoadedClassifier | None" = None

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


def check_settings(artefact: "ModelDescription", settings: SampleSettings) -> TimeGrid:
    """Return the times that the settings visit; UsageError if the model does not allow these settings."""
    process = build_process(artefact.process)
    grid = sampling_grid(settings, process)
    if SAMPLERS[settings.sampler].uses_eta:
        check_eta(grid, settings.eta)
        check_noise(settings.noise, artefact.network.learned_variance)
    if settings.guidance and GUIDANCE_RULES[settings.rule].needs_null and not artefact.network.null_class:
        raise UsageError("guidance needs a model trained with train.p_uncond > 0; use guidance 0")
    return grid


def should_compile(
    artefact: "ModelDescription", settings: SampleSettings, batches: int, device: torch.device
) -> bool:
    """Return whether compiling the network is faster for this number of batches.

    The network is called for a batch as often as for an image.
    """
    return is_worth_compiling(batches * count_nfe(settings, artefact.process), device)


def generate(
    loaded: "LoadedModel",
    settings: SampleSettings,
    indices: Sequence[int],
    condition: Condition,
    device: torch.device,
    callback: _Callback | None = None,
    guides: Guides = NO_GUIDES,
    *,
    fast: bool = False,
) -> Tensor:
    """Return the images at `indices`, uint8 (B, C, H, W) on the CPU; the condition has a row for each.

    The networks are in eval mode on `device`; `fast` compiles them. On a CPU two halves are computed in
    parallel, unless a `callback` needs all images at each step. UsageError as `check_settings`, or for a
    guide that is missing or does not fit; NonFiniteError with the image and the step of the first NaN or
    infinity.
    """
    spec = loaded.artefact.network
    shape = (spec.in_channels, spec.image_size, spec.image_size)
    grid = check_settings(loaded.artefact, settings)
    generator = _generator(loaded, settings, grid, device, guides, fast)
    networks = guides.networks(loaded)

    def images(part: slice, on_step: _Callback | None) -> Tensor:
        own = indices[part]
        guard = guard_networks(networks, settings.is_guided, lambda row: f"image {own[row]}")
        noise = ImageNoise(settings.seed, own, shape, grid.initial_noise_scale)
        return generator(noise.draw, condition.rows(part), on_step, guard)

    if callback or len(indices) < 2 or not splitting_helps(device):
        return images(slice(None), callback)
    return torch.cat(in_halves(lambda half, check: images(half, lambda step: check()), len(indices)))


def generate_from_noise(
    loaded: "LoadedModel",
    settings: SampleSettings,
    draw: _Draw,
    condition: Condition,
    device: torch.device,
    callback: _Callback | None = None,
) -> Tensor:
    """Return the images from the noise of `draw`: x_T first, then each noisy step's z; as `generate`."""
    grid = check_settings(loaded.artefact, settings)
    guard = guard_networks({"model": loaded.network}, bool(settings.guidance), "image {} of these".format)
    return _generator(loaded, settings, grid, device)(draw, condition, callback, guard)


def _generator(
    loaded: "LoadedModel",
    settings: SampleSettings,
    grid: TimeGrid,
    device: torch.device,
    guides: Guides = NO_GUIDES,
    fast: bool = False,
) -> _Generator:
    """Return what generates images. It prepares once all that depends on neither noise nor condition."""
    sampler = build_sampler(settings)
    denoiser = guided_denoiser(loaded, settings, guides, fast=fast)
    ahead = noise_draws(settings, device)

    def images(draw: _Draw, condition: Condition, callback: _Callback | None, guard: NaNGuard) -> Tensor:
        with prefetched_draws(lambda: to_device(draw(), device), ahead, device) as noise:
            trajectory = sampler(grid, noise(), noise)
            result = run_sampler(trajectory, denoiser, condition.to(device), callback, guard)
            return to_uint8(result.x).cpu()

    return images


def noise_draws(settings: SampleSettings, device: torch.device) -> int:
    """Return the number of noise draws that are prefetched: x_T and z of all steps but the last, or none.

    On a CPU a drawing thread takes cores from the network. On an Apple GPU a second thread is untested.
    """
    noisy = SAMPLERS[settings.sampler].uses_eta and settings.eta > 0
    return settings.steps if noisy and device.type == "cuda" else 0


def model_denoiser(loaded: "LoadedModel", *, fast: bool = False) -> NetworkDenoiser:
    """Return the unguided model in the precision that its file names; `fast` compiles it."""
    network, artefact = loaded
    cast = autocast(network, artefact.precision, fast=fast)
    return NetworkDenoiser(cast, build_process(artefact.process))


def guided_denoiser(
    loaded: "LoadedModel", settings: SampleSettings, guides: Guides = NO_GUIDES, *, fast: bool = False
) -> Denoiser:
    """Return the model with all guidance of the settings; `fast` compiles the networks.

    UsageError for a guide that is missing or does not fit.
    """
    check_guides(settings, guides)
    model, guide = model_denoiser(loaded, fast=fast), None
    if settings.needs_guide and guides.model is not None:
        guide = guide_denoiser(loaded.artefact, guides.model, fast=fast)
    denoiser = guided(model, settings, model.process, guide)
    if not settings.has_classifier or guides.classifier is None:
        return denoiser
    if not loaded.artefact.network.num_classes:
        denoiser = without_labels(denoiser)
    return guided_by_classifier(denoiser, loaded.artefact, settings, guides.classifier)


def check_guides(settings: SampleSettings, guides: Guides) -> None:
    """Raise UsageError if a network is missing that the settings name."""
    if settings.needs_guide and guides.model is None:
        raise UsageError(f"guidance_rule {settings.rule} needs the model of guide {settings.guide}")
    if settings.has_classifier and guides.classifier is None:
        raise UsageError(f"classifier_scale needs the network of classifier {settings.classifier}")


def guided_by_classifier(
    denoiser: Denoiser,
    artefact: "ModelDescription",
    settings: SampleSettings,
    classifier: "LoadedClassifier",
) -> Denoiser:
    """Wrap a denoiser of the model in classifier guidance; UsageError if the classifier does not fit it.

    With η = 1 it is ADM's alg. 1, as DDPM; else alg. 2, which allows any η.
    """
    check_fit(artefact, classifier.artefact, "classifier")
    noise = build_process(classifier.artefact.process)

    def logits(x: Tensor, t: Tensor) -> Tensor:
        received, time = noise.network_input(x, t)
        scores: Tensor = classifier.network(received, expand_times(time, x))
        return scores

    gradient = classifier_gradient(logits, settings.classifier_scale)
    if settings.eta == 1:
        return shift_mean(denoiser, gradient)
    return shift_eps(denoiser, gradient, build_process(artefact.process))


def guide_denoiser(artefact: "ModelDescription", guide: "LoadedModel", *, fast: bool = False) -> Denoiser:
    """Return the denoiser of a guide; UsageError if it does not fit the model.

    A guide without classes guides a conditional model too: it gets no labels.
    """
    check_fit(artefact, guide.artefact, "guide")
    denoiser = model_denoiser(guide, fast=fast)
    return denoiser if guide.artefact.network.num_classes else without_labels(denoiser)


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
            f"the {name} was trained with the noise of {_describe_noise(other.process, artefact.process)}, "
            f"the model with that of {_describe_noise(artefact.process, other.process)}"
        )
    if name == "guide" and theirs.num_classes and not ours.num_classes:
        raise UsageError("the guide needs classes, and the model has none")
    if ours.num_classes and theirs.num_classes and artefact.data.classes != other.data.classes:
        raise UsageError(f"the {name} was trained on other classes than the model")


def has_same_noise(process: NoiseProcess, other: NoiseProcess) -> bool:
    """Return whether two processes have the same times, with the same α and σ."""
    grids = [(grid.times, grid.alpha, grid.sigma) for grid in (process.probe_grid(), other.probe_grid())]
    return all(torch.equal(ours, theirs) for ours, theirs in zip(*grids, strict=True))


def _describe_noise(process: ProcessConfig, other: ProcessConfig) -> str:
    """Return the schedule with its own options that the other process has not, or has otherwise."""
    own = type(process).model_fields.keys() - ProcessConfig.model_fields.keys() - {"variance"}
    fields = [name for name in type(process).model_fields if name in own]
    different = [name for name in fields if getattr(other, name, None) != getattr(process, name)]
    options = ", ".join(f"{name} {getattr(process, name)}" for name in different)
    return f"{process.schedule} ({options})" if options else process.schedule
