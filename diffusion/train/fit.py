"""Training in memory, for notebooks and scripts: the same steps without files, states and metrics."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion.images.image_size import written_size
from diffusion.model.model_file import DataCard
from diffusion.model.network_registry import NetworkSpec
from diffusion.process.noise_process import NoiseProcess
from diffusion.system.errors import UsageError
from diffusion.system.section import validate
from diffusion.train.batch import TensorLoader
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.fit_inputs import check_fits, check_output, checked_tensors
from diffusion.train.initial_state import new_state
from diffusion.train.loop import Diverged
from diffusion.train.loop import train as train_steps
from diffusion.train.observers import Observer
from diffusion.train.plan import OBSERVATION_FIELDS, DenoiserPlan
from diffusion.train.planning import resolve_precision
from diffusion.train.train_config import BAND_NAMES, TrainConfig

IN_CODE_DIGEST = False  # diffusion/code_digest.py

DEFAULTS = {"batch_size": 128, "lr": {"schedule": "cosine", "rate": 2e-3}, "ema_decay": 0.995}
UNUSED = OBSERVATION_FIELDS | {"devices", "shard", "ema_profiles", "init_from"}  # without an effect in `fit`


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
