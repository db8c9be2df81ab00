"""A model's images by index: image i depends on the model, the settings and i alone."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion.images.pixels import to_uint8
from diffusion.model.compiled import is_worth_compiling
from diffusion.model.model_file import LoadedModel, ModelDescription
from diffusion.model.precision import autocast
from diffusion.process.condition import Condition
from diffusion.process.denoiser import Denoiser, NetworkDenoiser
from diffusion.process.noise import ImageNoise
from diffusion.process.process_registry import build_process
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.samplers import SAMPLERS, build_sampler
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.eta import check_eta, check_noise
from diffusion.sample.guidance import (
    classifier_gradient,
    guided,
    shift_eps,
    shift_mean,
    without_labels,
)
from diffusion.sample.nan_guard import NaNGuard, guard_networks
from diffusion.sample.nfe import count_nfe, sampling_grid
from diffusion.sample.sampler import Step, run_sampler
from diffusion.system.device_transfer import to_device
from diffusion.system.errors import UsageError
from diffusion.system.threads import in_halves, prefetched_draws, splitting_helps

if TYPE_CHECKING:  # a model's images do not come from a classifier's code, unless there is one
    from diffusion.model.classifier import LoadedClassifier

_Draw = Callable[[], Tensor]
_Callback = Callable[[Step], object]
_Making = Callable[[_Draw, Condition, _Callback | None, NaNGuard], Tensor]
"""(draw, condition, callback, watch) → images, as `generate_from_noise`."""


def check_settings(artefact: ModelDescription, settings: SampleSettings) -> TimeGrid:
    """The times to walk along; UsageError when this model cannot be sampled so."""
    process = build_process(artefact.process)
    grid = sampling_grid(settings, process)
    if SAMPLERS[settings.sampler].stochastic:
        check_eta(grid, settings.eta)
        check_noise(settings.noise, artefact.network.learned_variance)
    if settings.guidance and not artefact.network.null_class:
        raise UsageError("guidance needs a model trained with train.p_uncond > 0; use guidance 0")
    return grid


def should_compile(
    artefact: ModelDescription, settings: SampleSettings, batches: int, device: torch.device
) -> bool:
    """Whether so many batches of a model's images are made there with the network compiled, as `fast`.

    The network sees a batch as often as an image: where that is often enough in all, compiling pays.
    """
    return is_worth_compiling(batches * count_nfe(settings, artefact.process), device)


def generate(
    loaded: LoadedModel,
    settings: SampleSettings,
    indices: Sequence[int],
    condition: Condition,
    device: torch.device,
    callback: _Callback | None = None,
    classifier: "LoadedClassifier | None" = None,
    *,
    fast: bool = False,
) -> Tensor:
    """The images at `indices` under a row each of the condition, uint8 (B, C, H, W) on the CPU.

    The network is in eval mode on `device`; `fast` has it compiled. On a CPU they are made in two halves,
    unless a `callback` is to see all of them at each step. UsageError as `check_settings`, NonFiniteError
    with the image and the step of the first NaN or infinity.
    """
    spec = loaded.artefact.network
    shape = (spec.in_channels, spec.image_size, spec.image_size)
    make = _making(loaded, settings, device, classifier, fast)
    networks = {"model": loaded.network} | ({"classifier": classifier.network} if classifier else {})
    has_guidance = bool(settings.guidance or settings.classifier_scale)

    def made(part: slice, seen: _Callback | None) -> Tensor:
        own = indices[part]
        watch = guard_networks(networks, has_guidance, lambda row: f"image {own[row]}")
        return make(ImageNoise(settings.seed, own, shape).draw, condition.rows(part), seen, watch)

    if callback or len(indices) < 2 or not splitting_helps(device):
        return made(slice(None), callback)
    return torch.cat(in_halves(lambda half, go_on: made(half, lambda step: go_on()), len(indices)))


def generate_from_noise(
    loaded: LoadedModel,
    settings: SampleSettings,
    draw: _Draw,
    condition: Condition,
    device: torch.device,
    callback: _Callback | None = None,
) -> Tensor:
    """The images that grow from what `draw` gives: x_T first, then each noisy step's z; as `generate`."""
    watch = guard_networks({"model": loaded.network}, bool(settings.guidance), "image {} of these".format)
    return _making(loaded, settings, device)(draw, condition, callback, watch)


def _making(
    loaded: LoadedModel,
    settings: SampleSettings,
    device: torch.device,
    classifier: "LoadedClassifier | None" = None,
    fast: bool = False,
) -> _Making:
    """What makes images; all that depends neither on draws nor on conditions is done here, once."""
    grid, sampler = check_settings(loaded.artefact, settings), build_sampler(settings)
    denoiser = guided_denoiser(loaded, settings, classifier, fast=fast)
    ahead = noise_draws(settings, device)

    def make(draw: _Draw, condition: Condition, callback: _Callback | None, watch: NaNGuard) -> Tensor:
        with prefetched_draws(lambda: to_device(draw(), device), ahead, device) as noise:
            walk = sampler(grid, noise(), noise)
            return to_uint8(run_sampler(walk, denoiser, condition.to(device), callback, watch).x).cpu()

    return make


def noise_draws(settings: SampleSettings, device: torch.device) -> int:
    """How many draws of a walk are made one ahead of their use: x_T and z of all steps but the last, or none.

    On a CPU the thread that draws would take from the network what it gives. With an Apple GPU nobody has
    seen a second thread go well.
    """
    noisy = SAMPLERS[settings.sampler].stochastic and settings.eta > 0
    return settings.steps if noisy and device.type == "cuda" else 0


def model_denoiser(loaded: LoadedModel, *, fast: bool = False) -> NetworkDenoiser:
    """The model alone, in the precision that its file names; `fast` has it compiled."""
    network, artefact = loaded
    cast = autocast(network, artefact.precision, fast=fast)
    return NetworkDenoiser(cast, build_process(artefact.process))


def guided_denoiser(
    loaded: LoadedModel,
    settings: SampleSettings,
    classifier: "LoadedClassifier | None" = None,
    *,
    fast: bool = False,
) -> Denoiser:
    """The model under all its guidance; `fast` has the model compiled.

    With η = 1 a classifier guides by ADM's alg. 1, as DDPM; else by alg. 2, which any η allows.
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


def check_classifier(artefact: ModelDescription, classifier: "LoadedClassifier") -> None:
    """UsageError unless the classifier knows this model's images, its process and, if any, its classes."""
    ours, theirs = artefact.network, classifier.artefact.network
    process, seen = artefact.process, classifier.artefact.process
    if (ours.image_size, ours.in_channels) != (theirs.image_size, theirs.in_channels):
        raise UsageError(
            f"the classifier takes {theirs.image_size}×{theirs.image_size}×{theirs.in_channels} images, "
            f"the model makes {ours.image_size}×{ours.image_size}×{ours.in_channels}"
        )
    if not torch.equal(build_process(process).full_grid().alpha, build_process(seen).full_grid().alpha):
        raise UsageError(
            f"the classifier knows the noise of {seen.schedule} with {seen.timesteps} timesteps, "
            f"the model has {process.schedule} with {process.timesteps}"
        )
    if ours.num_classes and artefact.data.classes != classifier.artefact.data.classes:
        raise UsageError("the classifier was trained on other classes than the model")
