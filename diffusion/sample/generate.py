"""Images of a model by index: image i depends on the model, the settings and i alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion.images.image_size import Size
from diffusion.images.pixels import to_model, to_uint8
from diffusion.model.precision import autocast
from diffusion.process.denoiser import Condition, Denoiser
from diffusion.process.noise_process import NetworkDenoiser, build_process
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings, base_settings, completed
from diffusion.sample.classifier_guidance import classifier_guidance, without_labels
from diffusion.sample.conditions import base_condition
from diffusion.sample.guidance import build_guidance, guided
from diffusion.sample.guides import NO_GUIDES, OF_BASE, Guides, check_fit, check_guides
from diffusion.sample.low_res import check_cond_noise, image_noise, noised_condition
from diffusion.sample.sampler import CustomTrajectory, NaNGuard, Step, adds_noise, build_sampler, run_sampler
from diffusion.sample.sampling_steps import (
    check_eta,
    check_learned_times,
    check_noise,
    count_nfe,
    sampling_grid,
)
from diffusion.sample.tiles import tiled
from diffusion.system.devices import to_device
from diffusion.system.errors import UsageError
from diffusion.system.threads import in_halves, prefetched_draws, splitting_helps

if TYPE_CHECKING:  # images do not depend on the format of model files
    from diffusion.model.model_file import LoadedModel, ModelDescription

# Compiling takes a minute or two: the passes of 2,000 steps of training, three each.
MIN_COMPILED_PASSES = 6000

OnStep = Callable[[Step], object]
"""Called with each step of a trajectory."""


def check_settings(artefact: "ModelDescription", settings: SampleSettings) -> TimeGrid:
    """Return the times that the settings visit; UsageError if the model does not allow these settings."""
    process = build_process(artefact.process)
    grid = sampling_grid(settings, process)
    check_cond_noise(settings, artefact.network)
    if SAMPLERS[settings.sampler].uses_eta:
        check_eta(grid, settings.eta)
        check_noise(settings.noise, artefact.network.learned_variance)
    if artefact.ema_sigma_rel is None:  # an EMA profile has the times of its training's own model
        check_learned_times(settings, artefact.model_sha256)
    if settings.guidance:
        build_guidance(settings, process)
        if GUIDANCE_RULES[settings.rule].needs_null and not artefact.network.null_class:
            raise UsageError("guidance needs a model trained with train.p_uncond > 0; use guidance 0")
    return grid


def should_compile(
    artefact: "ModelDescription", settings: SampleSettings, batches: int, device: torch.device
) -> bool:
    """Return whether compiling is faster for this number of batches: on a GPU, for many passes."""
    return device.type == "cuda" and batches * count_nfe(settings, artefact.process) >= MIN_COMPILED_PASSES


def generate(
    loaded: "LoadedModel",
    settings: SampleSettings,
    indices: Sequence[int],
    condition: Condition,
    device: torch.device,
    callback: OnStep | None = None,
    guides: Guides = NO_GUIDES,
    *,
    fast: bool = False,
    custom: CustomTrajectory | None = None,
    size: Size | None = None,
    tile_batch: int = 64,
) -> Tensor:
    """Return the images at `indices`, uint8 (B, C, H, W) on the CPU; the condition has a row for each.

    A `custom` trajectory replaces the settings' sampler. Images of another `size` (H, W) than the model's are
    denoised in tiles, `tile_batch` of them in a forward pass.

    A model that enlarges images takes those of the condition, else those that a base model makes first.

    The networks are in eval mode on `device`; `fast` compiles them. On a CPU two halves are computed in
    parallel, unless a `callback` needs all images at each step. UsageError as `check_settings`, or for a
    guide that is missing or does not fit; NonFiniteError with the image and the step of the first NaN or
    infinity.
    """
    spec, settings = loaded.artefact.network, completed(settings, loaded.artefact.process.schedule)
    grid, sampler = check_settings(loaded.artefact, settings), build_sampler(settings)
    build_denoiser = denoiser_builder(loaded, settings, guides, fast=fast)
    condition = with_base_images(loaded, settings, indices, condition, device, guides)
    condition = noised_condition(spec, settings, indices, condition)
    networks, ahead = guides.networks(loaded), noise_draws(settings, device)

    def images(part: slice, on_step: OnStep | None) -> Tensor:
        own = indices[part]
        guard = NaNGuard(lambda row: f"image {own[row]}", networks, settings.is_guided)
        source = image_noise(spec, settings, own, grid, size)
        with prefetched_draws(lambda: to_device(source.draw(), device), ahead, device) as noise:
            chosen = sampler if custom is None else custom.samplers(part)
            trajectory = chosen(grid, noise(), noise)
            denoiser = build_denoiser() if size is None else tiled(build_denoiser, spec.size, tile_batch)
            result = run_sampler(trajectory, denoiser, condition.rows(part).to(device), on_step, guard)
            return to_uint8(result.x).cpu()

    if callback or len(indices) < 2 or not splitting_helps(device):
        return images(slice(None), callback)
    return torch.cat(in_halves(lambda half, check: images(half, lambda step: check()), len(indices)))


def with_base_images(
    loaded: "LoadedModel",
    settings: SampleSettings,
    indices: Sequence[int],
    condition: Condition,
    device: torch.device,
    guides: Guides = NO_GUIDES,
) -> Condition:
    """Return the condition with the images of a base model, if there is one and no others are given."""
    base = guides.base
    if loaded.artefact.network.low_res is None or condition.low_res is not None or base is None:
        return condition
    own = base_settings(settings, base.artefact.process.schedule)
    if own is None:
        return condition
    images = generate(base, own, indices, base_condition(base.artefact, condition), device, guides=OF_BASE)
    return replace(condition, low_res=to_model(images))


def noise_draws(settings: SampleSettings, device: torch.device) -> int:
    """Return the number of noise draws that are prefetched: x_T and z of all steps but the last, or none.

    On a CPU a drawing thread takes cores from the network. On an Apple GPU a second thread is untested.
    """
    return settings.steps if device.type == "cuda" and adds_noise(settings) else 0


def model_denoiser(loaded: "LoadedModel", *, fast: bool = False) -> NetworkDenoiser:
    """Return the unguided model in the precision that its file names; `fast` compiles it."""
    network, artefact = loaded
    cast = autocast(network, artefact.precision, fast=fast)
    return NetworkDenoiser(cast, build_process(artefact.process))


def denoiser_builder(
    loaded: "LoadedModel",
    settings: SampleSettings,
    guides: Guides = NO_GUIDES,
    *,
    fast: bool = False,
) -> Callable[[], Denoiser]:
    """Return what builds, for each trajectory, the model with all guidance of the settings.

    `fast` compiles the networks. UsageError for a guide that is missing or does not fit.
    """
    check_guides(loaded.artefact, settings, guides)
    process, classifier = build_process(loaded.artefact.process), guides.classifier
    model: Denoiser = model_denoiser(loaded, fast=fast)
    guide: Denoiser | None = None
    if settings.needs_guide and guides.model is not None:
        guide = guide_denoiser(loaded.artefact, guides.model, fast=fast)

    def build() -> Denoiser:
        denoiser = guided(model, settings, process, guide)
        return denoiser if loaded.artefact.network.num_classes else without_labels(denoiser)

    if not settings.has_classifier or classifier is None:
        return build
    by_classifier = classifier_guidance(loaded.artefact, settings, classifier)
    return lambda: by_classifier(build())


def guide_denoiser(artefact: "ModelDescription", guide: "LoadedModel", *, fast: bool = False) -> Denoiser:
    """Return the denoiser of a guide; UsageError if it does not fit the model.

    A guide without classes guides a conditional model too: it gets no labels.
    """
    check_fit(artefact, guide.artefact, "guide")
    denoiser = model_denoiser(guide, fast=fast)
    return denoiser if guide.artefact.network.num_classes else without_labels(denoiser)
