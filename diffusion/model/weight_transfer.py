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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion.model.network_registry import MODELS, NetworkSpec
from diffusion.system.errors import UsageError
from diffusion.system.references import load_reference

Weights = Mapping[str, Tensor]


class Incompatible(UsageError):
    """Pretrained weights do not fit the network."""


@dataclass(frozen=True)
class Source:
    """A trained network: its weights by name, its spec, and the names of its classes in label order."""

    weights: Weights
    spec: NetworkSpec
    classes: tuple[str, ...]


class Transferred(NamedTuple):
    """All weights of the new network, and the names of those that are random in whole or in part."""

    weights: dict[str, Tensor]
    new: frozenset[str] = frozenset()


def transfer(start: Source, spec: NetworkSpec, classes: tuple[str, ...], drawn: Weights) -> Transferred:
    """Return the weights that a network of this spec begins with, for these classes.

    `drawn` are its own random weights, which stay where the rule transfers none. Incompatible names the
    first field or weight that does not fit.
    """
    if start.spec.name != spec.name:
        raise Incompatible(f"model.name is {spec.name}, and the start is a {start.spec.name}")
    rule = load_reference(MODELS[spec.name].transfer)
    taken: Transferred = rule(start, spec, classes, drawn)
    return taken


def transfer_unchanged(
    start: Source, spec: NetworkSpec, classes: tuple[str, ...], drawn: Weights
) -> Transferred:
    """Return all weights as they are: for a network of the same shape and the same classes."""
    check_same_options(start.spec, spec)
    if start.classes != classes:
        raise Incompatible(f"a {spec.name} starts from one of the same classes in the same order only")
    return Transferred(copy_weights(start.weights, drawn))


def check_same_options(start: NetworkSpec, spec: NetworkSpec, free: frozenset[str] = frozenset()) -> None:
    """Incompatible where an option of the network itself differs: equal weights would mean another thing.

    The common options of networks may differ, those of training alone, and those in `free`.
    """
    free |= NetworkSpec.model_fields.keys() | spec.TRAINING_ONLY
    for field in type(spec).model_fields.keys() - free:
        ours, theirs = getattr(spec, field), getattr(start, field)
        if ours != theirs:
            raise Incompatible(f"model.{field} is {_shown(ours)}, and the start has {_shown(theirs)}")


def copy_weights(theirs: Weights, drawn: Weights) -> dict[str, Tensor]:
    """Their weights; Incompatible names the first that is missing, left over or of another shape."""
    for name in sorted(theirs.keys() | drawn.keys()):
        if name not in theirs:
            raise Incompatible(f"the start has no {name}, which the network needs")
        if name not in drawn:
            raise Incompatible(f"the start has {name}, which the network does not know")
        if theirs[name].shape != drawn[name].shape:
            raise Incompatible(
                f"{name} has shape {tuple(theirs[name].shape)} in the start, and the network wants "
                f"{tuple(drawn[name].shape)}"
            )
    return dict(theirs)


def _shown(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)


CLASSES, CLASS_BIAS = "classes.weight", "time.2.bias"
AUGMENTATION = "augmentation.weight"
STEM, HEAD = "stem.weight", ("head.weight", "head.bias")


def transfer_conditioned(
    start: Source, spec: NetworkSpec, classes: tuple[str, ...], drawn: Weights
) -> Transferred:
    """Return the initial weights of a `ConditionedNetwork`; raise Incompatible if they do not fit."""
    check_same_options(start.spec, spec, free=frozenset({"attention_resolutions", "augmented"}))
    if len(set(start.classes)) != len(start.classes):
        raise Incompatible("the start names two classes alike, so that none can be taken by its name")
    ours, channels = dict(start.weights), (start.spec.in_channels, spec.in_channels)
    ours[STEM] = _of_inputs(ours[STEM], *channels)
    pixels = len(ours[HEAD[0]]) // start.spec.out_channels  # of a patch
    for name in HEAD:
        ours[name] = _of_outputs(ours[name], drawn[name], *channels, pixels)
    new: frozenset[str] = frozenset()
    no_class = _no_class(start)
    if CLASSES in drawn:
        ours[CLASSES] = _rows(start, no_class, classes, drawn[CLASSES])
        new = frozenset() if set(classes) <= set(start.classes) else frozenset({CLASSES})
    elif ours.pop(CLASSES, None) is not None:
        ours[CLASS_BIAS] = ours[CLASS_BIAS] + no_class
    if AUGMENTATION not in drawn:
        ours.pop(AUGMENTATION, None)
    elif AUGMENTATION not in ours:
        ours[AUGMENTATION], new = drawn[AUGMENTATION], new | {AUGMENTATION}
    return Transferred(copy_weights(ours, drawn), new)


def _no_class(start: Source) -> Tensor:
    """(E,) what the start adds to its embedding for a picture of no class in particular."""
    if CLASSES not in start.weights:
        return torch.zeros_like(start.weights[CLASS_BIAS])
    rows = start.weights[CLASSES]
    return rows[start.spec.num_classes] if start.spec.null_class else rows.mean(dim=0)


def _rows(start: Source, no_class: Tensor, classes: tuple[str, ...], drawn: Tensor) -> Tensor:
    """Return a row for each class, and for the empty label where the network has one."""
    known = {name: start.weights[CLASSES][row] for row, name in enumerate(start.classes)}
    rows = [known.get(name, no_class) for name in classes]
    return torch.stack([*rows, *[no_class] * (len(drawn) - len(rows))])


def _of_inputs(weight: Tensor, before: int, now: int) -> Tensor:
    """(O, before, …) → (O, now, …), which gives a grey picture in RGB what it gave in grey."""
    if before == now:
        return weight
    _refuse_odd(before, now)
    if now == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight.repeat_interleave(now, dim=1) / now


def _of_outputs(theirs: Tensor, drawn: Tensor, before: int, now: int, pixels: int) -> Tensor:
    """The start's predictions by the channels that are wanted; as drawn, where the start predicts nothing.

    Each channel has a row for each of the `pixels` that a layer gives at once.
    """
    theirs, drawn = (weights.reshape(-1, pixels, *weights.shape[1:]) for weights in (theirs, drawn))
    parts = [_of_output(part, before, now) for part in theirs.chunk(len(theirs) // before)]
    both = [*parts, *drawn.chunk(len(drawn) // now)[len(parts) :]][: len(drawn) // now]
    return torch.cat(both).flatten(0, 1)


def _of_output(part: Tensor, before: int, now: int) -> Tensor:
    """(before, pixels, …) → (now, pixels, …)."""
    if before == now:
        return part
    _refuse_odd(before, now)
    return part.mean(dim=0, keepdim=True) if now == 1 else part.repeat_interleave(now, dim=0)


def _refuse_odd(before: int, now: int) -> None:
    if {before, now} != {1, 3}:
        raise Incompatible(
            f"the images have {now} channels and the start's {before}: only 1 and 3 become each other"
        )
