"""Training in memory, for notebooks and scripts: the same steps without files, states and metrics.

Images, labels and network are checked as prepared data and params.yaml are.
"""

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion.images.image_size import format_size, written_size
from diffusion.images.pixels import to_model
from diffusion.model.model_file import DataCard
from diffusion.model.network_registry import NetworkSpec
from diffusion.process.denoiser import Condition
from diffusion.process.noise_process import NetworkDenoiser, NoiseProcess
from diffusion.process.time_samplers import default_time_sampler
from diffusion.system.errors import UsageError
from diffusion.system.section import validate
from diffusion.train.batch import TensorLoader
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.initial_state import new_state
from diffusion.train.loop import Diverged
from diffusion.train.loop import train as train_steps
from diffusion.train.observers import Observer
from diffusion.train.plan import OBSERVATION_FIELDS, DenoiserPlan, resolve_precision
from diffusion.train.train_config import BAND_NAMES, TrainConfig, check_whole_batch

IN_CODE_DIGEST = False  # diffusion/code_digest.py

DEFAULTS = {"batch_size": 128, "lr": {"schedule": "cosine", "rate": 2e-3}, "ema_decay": 0.995}
UNUSED = OBSERVATION_FIELDS | {"devices", "shard", "ema_profiles", "init_from"}  # without an effect in `fit`
MAX_VALUE = 10.0  # of a pixel in about [−1, 1]; one that was not scaled has values up to 255


class FitStep(NamedTuple):
    """What `fit` reports after a step: its number from 1, of `steps`, its mean losses, the EMA so far."""

    step: int
    steps: int
    losses: dict[str, float]
    ema: nn.Module


def print_progress(done: FitStep) -> None:
    """Print the losses on stderr, ten times in a training: a callback of `fit`."""
    if done.step * 10 // done.steps > (done.step - 1) * 10 // done.steps:
        losses = ", ".join(f"{name} {value:.4f}" for name, value in done.losses.items())
        print(f"step {done.step:,} of {done.steps:,}: {losses}", file=sys.stderr, flush=True)


def fit(
    network: nn.Module | NetworkSpec,
    process: NoiseProcess,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    flip: bool = False,
    callback: Callable[[FitStep], object] | None = None,
    **train: Any,
) -> nn.Module:
    """Train a network in place on its device and return its EMA, in eval mode.

    `train` are fields of that section of params.yaml: `steps`, and others than the defaults here, which are
    batches of 128, a rate that falls from 0.002 by half a cosine, and an EMA of 0.995. Equal settings train
    as `diffctl run` does, bitwise equal on a CPU. A spec is built with the weights of `seed`.

    `images` (N, C, H, W) are uint8, or real numbers in about [−1, 1]. `labels` (N,) are class numbers. With
    `p_uncond` a share of them is replaced by the number of classes, for guidance. `callback` is called after
    each step. UsageError for a setting without an effect here, for a process that depends on the images, and
    for images and labels that do not fit the network.
    """
    images, labels = checked_tensors(images, labels)
    _check_resolved(process, images)
    module = network if isinstance(network, nn.Module) else None
    device = next(module.parameters()).device if module else torch.device("cpu")
    config = _config(train, labels, log_every=1 if callback else None)
    spec = _spec(network, process, images, labels)
    if config.microbatch == "auto" and isinstance(spec, _OwnSpec):
        config = config.model_copy(update={"microbatch": None})  # its memory cannot be estimated
    check_fits(config, spec, process, images, labels)
    if module and isinstance(spec, _OwnSpec):
        check_output(module, config, spec, process, images[:1])
    plan = DenoiserPlan(
        network=spec,
        process=process.config,
        data=DataCard(
            name="script", classes=tuple(map(str, range(spec.num_classes))), digest="script", flip=flip
        ),
        train=config,
        step=config.steps,
        precision=resolve_precision(config.precision, device),
    )
    state, observer = new_state(plan, device, network=module, process=process), _Newest()

    def report() -> None:
        if callback is not None and state.step > 0:
            callback(FitStep(state.step, plan.train.steps, observer.losses, state.ema))

    loader = TensorLoader(images, labels, device)
    try:
        train_steps(state, loader, ProcessGroup(device), observer, report)  # it reports the last step too
    except Diverged as error:
        where, *_ = str(error).split(":")
        raise Diverged(f"fit: {where}: lower lr; the network has its last finite weights") from None
    return state.ema


class _Newest(Observer):
    """The newest means, without those by band."""

    losses: dict[str, float]

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        self.losses = {name: value for name, value in values.items() if not name.startswith(BAND_NAMES)}


class _OwnSpec(NetworkSpec):
    """What a training needs to know about a network that no entry of model.name describes."""


def _config(settings: dict[str, Any], labels: Tensor | None, log_every: int | None) -> TrainConfig:
    """Return the section `train` of `fit`; UsageError for a setting that is invalid or has no effect.

    Means arrive every `log_every` steps, None for the last step alone: a GPU waits for them.
    """
    if unused := sorted(settings.keys() & UNUSED):
        raise UsageError(f"fit: {', '.join(unused)} has no effect here: leave it out, or use `diffctl run`")
    train = validate(TrainConfig, {**DEFAULTS, **settings}, "fit")
    if train.p_uncond and labels is None:
        raise UsageError(f"fit: p_uncond {train.p_uncond} has no effect without labels: give labels too")
    intervals = dict.fromkeys(("log_every", "save_every", "preview_every"), train.steps)
    return train.model_copy(update={**intervals, "log_every": log_every or train.steps, "val_every": None})


def _spec(
    network: nn.Module | NetworkSpec, process: NoiseProcess, images: Tensor, labels: Tensor | None
) -> NetworkSpec:
    """Return the network's spec, or what a training needs to know of a network without one."""
    spec = network if isinstance(network, NetworkSpec) else getattr(network, "spec", None)
    if isinstance(spec, NetworkSpec):
        if (labels is None) != (spec.num_classes == 0):
            given = "no labels" if labels is None else "labels"
            raise UsageError(f"fit: {given} for a network of {spec.num_classes} classes: both or neither")
        return spec
    channels = images.shape[1]
    return _OwnSpec.model_construct(
        image_size=written_size(images.shape[2:]),
        in_channels=channels,
        out_channels=channels * (1 + process.config.learned_variance),
        num_classes=0 if labels is None else int(labels.max()) + 1,
        null_class=labels is not None,
    )


def _check_resolved(process: NoiseProcess, images: Tensor) -> None:
    """Raise UsageError for a process with a setting that is to follow from the images."""
    channels, height, width = images.shape[1:]
    resolved = process.config.resolve((channels, height, width), 1.0)
    for name, value in resolved:
        if value != getattr(process.config, name):
            how = f"set {name}, or use process.config.resolve(images.shape[1:], STD of pixels in [−1, 1])"
            raise UsageError(f"fit: process.{name} is to follow from the images: {how}")


def checked_tensors(images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return images as uint8 or float32, and labels as int64; UsageError for others, or another shape."""
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.numel():
        raise UsageError(f"fit: images are {_describe(images)}: give a tensor (N, C, H, W)")
    if images.dtype != torch.uint8:
        if not images.is_floating_point():
            raise UsageError(f"fit: images are {images.dtype}: give uint8, or real numbers in about [−1, 1]")
        images = images.float()
        low, high = (float(value) for value in torch.aminmax(images))
        if not (low >= -MAX_VALUE and high <= MAX_VALUE):
            what = "NaN" if math.isnan(low) else f"values from {low:g} to {high:g}"
            raise UsageError(f"fit: images have {what}: give real numbers in about [−1, 1]")
    if labels is not None:
        if not isinstance(labels, Tensor) or labels.shape != images.shape[:1]:
            given = f"{_describe(labels)} for {len(images):,} images"
            raise UsageError(f"fit: labels are {given}: give a tensor with one number per image")
        if labels.is_floating_point() or labels.is_complex():
            raise UsageError(f"fit: labels are {labels.dtype}: give whole numbers, from 0 on")
        labels = labels.long()
    return images, labels


def check_fits(
    config: TrainConfig, spec: NetworkSpec, process: NoiseProcess, images: Tensor, labels: Tensor | None
) -> None:
    """Raise UsageError unless network, process, images and labels belong together."""
    shape = tuple(images.shape[1:])
    if shape != spec.shape:
        what = f"images of {format_size(shape)} numbers for a network of {format_size(spec.shape)}"
        raise UsageError(f"fit: {what} (channels × height × width): give images of its size, or another spec")
    _check_channels(spec.out_channels, spec, process)
    if labels is not None:
        low, high = (int(value) for value in torch.aminmax(labels))
        if low < 0 or high >= spec.num_classes:
            classes = f"the network's classes are 0 to {spec.num_classes - 1}"
            raise UsageError(f"fit: labels are from {low} to {high}: {classes}")
    if config.p_uncond and not spec.null_class:
        raise UsageError("fit: p_uncond has no effect: the network's spec needs null_class")
    if config.augment and not getattr(spec, "augmented", False):
        raise UsageError("fit: augment is a condition of the network: its spec needs augmented=True")
    try:
        check_whole_batch(process.config.loss, config)
    except ValueError as error:
        raise UsageError(f"fit: {error}") from None


def check_output(
    network: nn.Module, config: TrainConfig, spec: NetworkSpec, process: NoiseProcess, image: Tensor
) -> None:
    """Raise UsageError unless the output for one image (1, C, H, W), with its highest label, fits."""
    device = next(network.parameters()).device
    x = (to_model(image) if image.dtype == torch.uint8 else image).to(device)
    label = spec.num_classes - (not config.p_uncond)  # the highest one is that of no class
    labels = torch.tensor([label], device=device) if spec.num_classes else None
    t = default_time_sampler(process).times(torch.tensor([0.5], dtype=torch.float64))
    network.eval()  # a training begins with network.train()
    try:
        with torch.no_grad():
            output = NetworkDenoiser(network, process).output(x, t, Condition(1, labels))
    except IndexError as error:
        if labels is None:
            raise
        raise UsageError(f"fit: the network does not take the label {label} ({error})") from error
    if (1, *output.shape[2:]) != (len(output), *x.shape[2:]):
        shapes = f"shape {tuple(output.shape)} for shape {tuple(x.shape)}"
        raise UsageError(f"fit: the network returns {shapes}: its output must be (B, C, H, W)")
    _check_channels(output.shape[1], spec, process)


def _check_channels(found: int, spec: NetworkSpec, process: NoiseProcess) -> None:
    """Raise UsageError unless a network has the number of output channels that its process needs."""
    wanted = spec.in_channels * (1 + process.config.learned_variance)
    if found != wanted:
        needs = f"the process with loss {process.config.loss} needs {wanted}"
        other = "a network with twice the channels" if found < wanted else "a learned variance"
        raise UsageError(
            f"fit: the network returns {found} channels, and {needs}: use another loss or {other}"
        )


def _describe(given: object) -> str:
    return f"of shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
