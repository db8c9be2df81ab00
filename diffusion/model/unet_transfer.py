"""Transfer of a pretrained U-Net's weights to other classes, channels or image sizes.

- A class copies the embedding of the pretrained class with the same name. Any other class and the null label
  start as the pretrained "no class": its null label, else the mean of its classes, else zeros.
- An unconditional network adds the "no class" embedding to the bias, so it equals the pretrained network
  without a label.
- Between grey and RGB, a grey image in RGB gives the grey prediction in every channel.
- The augmentation layer is dropped, copied, or starts at zero. Dropping it is exact, since its input is zero
  when the network samples.
- The outputs of a learned variance are dropped, or keep their initial weights if they are missing.
- The image size may differ if attention is at the same levels.
"""

import torch
from torch import Tensor

from diffusion.model.model_config import NetworkSpec
from diffusion.model.weight_transfer import (
    Incompatible,
    Source,
    Transferred,
    Weights,
    check_same_options,
    copy_weights,
)

CLASSES, CLASS_BIAS = "classes.weight", "time.2.bias"
AUGMENTATION = "augmentation.weight"
STEM, HEAD = "stem.weight", ("head.weight", "head.bias")


def transfer(start: Source, spec: NetworkSpec, classes: tuple[str, ...], drawn: Weights) -> Transferred:
    """Return the initial weights of a U-Net of this spec; raise Incompatible if they do not fit."""
    check_same_options(start.spec, spec, free=frozenset({"attention_resolutions", "augmented"}))
    if len(set(start.classes)) != len(start.classes):
        raise Incompatible("the start names two classes alike, so that none can be taken by its name")
    ours, channels = dict(start.weights), (start.spec.in_channels, spec.in_channels)
    ours[STEM] = _of_inputs(ours[STEM], *channels)
    for name in HEAD:
        ours[name] = _of_outputs(ours[name], drawn[name], *channels)
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
    """A row for each class, and for the empty label where the network has one."""
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


def _of_outputs(theirs: Tensor, drawn: Tensor, before: int, now: int) -> Tensor:
    """The start's predictions by the channels that are wanted; as drawn, where the start predicts nothing."""
    parts = [_of_output(part, before, now) for part in theirs.chunk(len(theirs) // before)]
    return torch.cat([*parts, *drawn.chunk(len(drawn) // now)[len(parts) :]][: len(drawn) // now])


def _of_output(part: Tensor, before: int, now: int) -> Tensor:
    if before == now:
        return part
    _refuse_odd(before, now)
    return part.mean(dim=0, keepdim=True) if now == 1 else part.repeat_interleave(now, dim=0)


def _refuse_odd(before: int, now: int) -> None:
    if {before, now} != {1, 3}:
        raise Incompatible(
            f"the images have {now} channels and the start's {before}: only 1 and 3 become each other"
        )
