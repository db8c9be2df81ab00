"""Transfer of pretrained weights to another network, by the rule that its entry in MODELS names.

A rule reads only names and shapes of meta tensors, so that it can refuse weights before a training begins.

`transfer_conditioned`, for the U-Net and the DiT, allows other classes, channels and image sizes:

- A class copies the embedding of the pretrained class with the same name. Any other class and the null label
  start as the pretrained "no class": its null label, else the mean of its classes, else zeros.
- An unconditional network adds the "no class" embedding to the bias, so it equals the pretrained network
  without a label.
- Between grey and RGB, a grey image in RGB gives the grey prediction in every channel.
- The augmentation layer is dropped, copied, or starts at zero. Dropping it is exact, since its input is zero
  when the network samples.
- The outputs of a learned variance are dropped, or keep their initial weights if they are missing.
- The image size may differ. A U-Net's attention must be at the same levels. A DiT's positions have no
  weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.model.network_registry import MODELS, NetworkSpec
from diffusion.system.errors import UsageError
from diffusion.system.registry import load_reference

Weights = Mapping[str, Tensor]


class Incompatible(UsageError):
    """Pretrained weights do not fit the network."""


@dataclass(frozen=True)
class TransferSource:
    """A trained network: its weights by name, its spec, and the names of its classes in label order."""

    weights: Weights
    spec: NetworkSpec
    classes: tuple[str, ...]


class Transferred(NamedTuple):
    """All weights of the new network, and the names of those that are random in whole or in part."""

    weights: dict[str, Tensor]
    new: frozenset[str] = frozenset()


def transfer(
    source: TransferSource, spec: NetworkSpec, classes: tuple[str, ...], initial: Weights
) -> Transferred:
    """Return the initial weights of a network of this spec and these classes, from a pretrained one.

    `initial` are its random weights, which stay where the rule transfers none. Incompatible names the first
    field or weight that does not fit.
    """
    if source.spec.name != spec.name:
        raise Incompatible(f"model.name is {spec.name}, and the pretrained model is a {source.spec.name}")
    rule = load_reference(MODELS[spec.name].transfer)
    taken: Transferred = rule(source, spec, classes, initial)
    return taken


def transfer_unchanged(
    source: TransferSource, spec: NetworkSpec, classes: tuple[str, ...], initial: Weights
) -> Transferred:
    """Return all weights as they are: for a network of the same shape and the same classes."""
    check_same_options(source.spec, spec)
    if source.classes != classes:
        raise Incompatible(f"a {spec.name} starts from one of the same classes in the same order only")
    return Transferred(copy_weights(source.weights, initial))


def check_same_options(source: NetworkSpec, spec: NetworkSpec, free: frozenset[str] = frozenset()) -> None:
    """Raise Incompatible if an option differs with which equal weights would compute something else.

    The common options of networks may differ, those of training alone, and those in `free`.
    """
    free |= NetworkSpec.model_fields.keys() | spec.TRAINING_ONLY
    for field in type(spec).model_fields.keys() - free:
        ours, theirs = getattr(spec, field), getattr(source, field)
        if ours != theirs:
            raise Incompatible(f"model.{field} is {ours}, and the pretrained model has {theirs}")


def copy_weights(theirs: Weights, initial: Weights) -> dict[str, Tensor]:
    """Return their weights; Incompatible names the first that is missing, left over or of another shape."""
    for name in sorted(theirs.keys() | initial.keys()):
        shapes = [tuple(one[name].shape) if name in one else "missing" for one in (theirs, initial)]
        if shapes[0] != shapes[1]:
            raise Incompatible(
                f"{name} is {shapes[0]} in the pretrained model, and {shapes[1]} in the network"
            )
    return dict(theirs)


CLASSES, CLASS_BIAS = "classes.weight", "time.2.bias"
AUGMENTATION = "augmentation.weight"
INPUTS = ("stem.weight", "pixels.image.weight")  # of layers of the image; a DiT has the first
HEAD = ("head.weight", "head.bias")


def transfer_conditioned(
    source: TransferSource, spec: NetworkSpec, classes: tuple[str, ...], initial: Weights
) -> Transferred:
    """Return the initial weights of a `ConditionedNetwork`; raise Incompatible if they do not fit."""
    check_same_options(source.spec, spec, free=frozenset({"attention_resolutions", "augmented"}))
    for field in ("low_res", "cond_noise"):  # an enlarged image is an input, and its noise another one
        if bool(getattr(source.spec, field)) != bool(getattr(spec, field)):
            ours, theirs = getattr(spec, field), getattr(source.spec, field)
            raise Incompatible(f"model.{field} is {ours}, and the pretrained model has {theirs}")
    ours, before, now = dict(source.weights), source.spec.in_channels, spec.in_channels
    if before != now and {before, now} != {1, 3}:
        raise Incompatible(
            f"images of {now} channels and a pretrained model of {before}: only 1 and 3 convert"
        )
    for name in (name for name in INPUTS if name in ours):
        ours[name] = _of_inputs(ours[name], before, now)
    pixels = len(ours[HEAD[0]]) // source.spec.out_channels  # of a patch
    for name in HEAD:
        ours[name] = _of_outputs(ours[name], initial[name], before, now, pixels)
    new: frozenset[str] = frozenset()
    no_class = _no_class(source)
    if CLASSES in initial:
        ours[CLASSES] = _rows(source, no_class, classes, initial[CLASSES])
        new = frozenset() if set(classes) <= set(source.classes) else frozenset({CLASSES})
    elif ours.pop(CLASSES, None) is not None:
        ours[CLASS_BIAS] = ours[CLASS_BIAS] + no_class
    if AUGMENTATION not in initial:
        ours.pop(AUGMENTATION, None)
    elif AUGMENTATION not in ours:
        ours[AUGMENTATION], new = initial[AUGMENTATION], new | {AUGMENTATION}
    return Transferred(copy_weights(ours, initial), new)


def _no_class(source: TransferSource) -> Tensor:
    """Return what the pretrained network adds to its embedding without a class, (E,)."""
    if CLASSES not in source.weights:
        return torch.zeros_like(source.weights[CLASS_BIAS])
    rows = source.weights[CLASSES]
    return rows[source.spec.num_classes] if source.spec.null_class else rows.mean(dim=0)


def _rows(source: TransferSource, no_class: Tensor, classes: tuple[str, ...], initial: Tensor) -> Tensor:
    """Return a row for each class, and for the null label if the network has one."""
    known = {name: source.weights[CLASSES][row] for row, name in enumerate(source.classes)}
    rows = [known.get(name, no_class) for name in classes]
    return torch.stack([*rows, *[no_class] * (len(initial) - len(rows))])


def _of_inputs(weight: Tensor, before: int, now: int) -> Tensor:
    """Return weights (O, now, …) of (O, before, …); a grey image in RGB gives what it gave in grey."""
    if before == now:
        return weight
    if now == 1:
        images = weight.chunk(weight.shape[1] // before, dim=1)  # x_t, and perhaps an enlarged one
        return torch.cat([image.sum(dim=1, keepdim=True) for image in images], dim=1)
    return weight.repeat_interleave(now, dim=1) / now


def _of_outputs(theirs: Tensor, initial: Tensor, before: int, now: int, pixels: int) -> Tensor:
    """Return the last layer for `now` channels; its rows are initial where `theirs` predicts nothing.

    Each channel has a row for each of the `pixels` of a patch.
    """
    theirs, initial = (weights.reshape(-1, pixels, *weights.shape[1:]) for weights in (theirs, initial))
    parts = [_of_output(part, before, now) for part in theirs.chunk(len(theirs) // before)]
    both = [*parts, *initial.chunk(len(initial) // now)[len(parts) :]][: len(initial) // now]
    return torch.cat(both).flatten(0, 1)


def _of_output(part: Tensor, before: int, now: int) -> Tensor:
    """Return one prediction of `now` channels: (before, pixels, …) → (now, pixels, …)."""
    if before == now:
        return part
    return part.mean(dim=0, keepdim=True) if now == 1 else part.repeat_interleave(now, dim=0)
