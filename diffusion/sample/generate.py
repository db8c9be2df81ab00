"""Images of a model by index: image i depends on the model, the settings and i alone."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion.images.pixels import to_uint8
from diffusion.model.precision import autocast, is_worth_compiling
from diffusion.process.condition import Condition
from diffusion.process.denoiser import Denoiser, NetworkDenoiser
from diffusion.process.noise import ImageNoise
from diffusion.process.process_registry import build_process
from diffusion.process.time_grid import TimeGrid
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


def check_settings(artefact: "ModelDescription", settings: SampleSettings) -> TimeGrid:
    """Return the times that the settings visit; UsageError if the model does not allow these settings."""
    process = build_process(artefact.process)
    grid = sampling_grid(settings, process)
    if SAMPLERS[settings.sampler].uses_eta:
        check_eta(grid, settings.eta)
        check_noise(settings.noise, artefact.network.learned_variance)
    if settings.guidance and not artefact.network.null_class:
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
    classifier: "LoadedClassifier | None" = None,
    *,
    fast: bool = False,
) -> Tensor:
    """Return the images at `indices`, uint8 (B, C, H, W) on the CPU; the condition has a row for each.

    The network is in eval mode on `device`; `fast` compiles it. On a CPU two halves are computed in parallel,
    unless a `callback` needs all images at each step. UsageError as `check_settings`, NonFiniteError with the
    image and the step of the first NaN or infinity.
    """
    spec = loaded.artefact.network
    shape = (spec.in_channels, spec.image_size, spec.image_size)
    grid = check_settings(loaded.artefact, settings)
    generator = _generator(loaded, settings, grid, device, classifier, fast)
    networks = {"model": loaded.network} | ({"classifier": classifier.network} if classifier else {})
    has_guidance = bool(settings.guidance or settings.classifier_scale)

    def images(part: slice, on_step: _Callback | None) -> Tensor:
        own = indices[part]
        guard = guard_networks(networks, has_guidance, lambda row: f"image {own[row]}")
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
    classifier: "LoadedClassifier | None" = None,
    fast: bool = False,
) -> _Generator:
    """Return what generates images. It prepares once all that depends on neither noise nor condition."""
    sampler = build_sampler(settings)
    denoiser = guided_denoiser(loaded, settings, classifier, fast=fast)
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
    loaded: "LoadedModel",
    settings: SampleSettings,
    classifier: "LoadedClassifier | None" = None,
    *,
    fast: bool = False,
) -> Denoiser:
    """Return the model with all guidance of the settings; `fast` compiles the model.

    With η = 1 a classifier guides by ADM's alg. 1, as DDPM; else by alg. 2, which allows any η.
    """
    model = model_denoiser(loaded, fast=fast)
    denoiser = guided(model, settings, model.process)
    if classifier is None or settings.classifier_scale == 0:
        return denoiser
    check_classifier(loaded.artefact, classifier)
    if not loaded.artefact.network.num_classes:
        denoiser = without_labels(denoiser)
    gradient = classifier_gradient(classifier.network, settings.classifier_scale)
    if settings.eta == 1:
        return shift_mean(denoiser, gradient)
    return shift_eps(denoiser, gradient, model.process)


def check_classifier(artefact: "ModelDescription", classifier: "LoadedClassifier") -> None:
    """Raise UsageError unless the classifier fits the model's images, process and, if any, classes."""
    ours, theirs = artefact.network, classifier.artefact.network
    process, other = artefact.process, classifier.artefact.process
    if (ours.image_size, ours.in_channels) != (theirs.image_size, theirs.in_channels):
        raise UsageError(
            f"the classifier takes {theirs.image_size}×{theirs.image_size}×{theirs.in_channels} images, "
            f"the model makes {ours.image_size}×{ours.image_size}×{ours.in_channels}"
        )
    if not torch.equal(build_process(process).probe_grid().alpha, build_process(other).probe_grid().alpha):
        raise UsageError(
            f"the classifier was trained with the noise of {other.schedule} and {other.max_steps} timesteps, "
            f"the model with {process.schedule} and {process.max_steps}"
        )
    if ours.num_classes and artefact.data.classes != classifier.artefact.data.classes:
        raise UsageError("the classifier was trained on other classes than the model")
