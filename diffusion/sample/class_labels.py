"""Conditions of images: a mix of classes, one class by name, or given labels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.model.model_file import ModelDescription
from diffusion.process.condition import Condition
from diffusion.process.noise import counter_generator
from diffusion.protocol.settings import SampleSettings
from diffusion.system.errors import UsageError
from diffusion.system.section import brief


def labels_condition(artefact: ModelDescription, labels: Tensor | None, count: int) -> Condition:
    """Return the condition of `count` images with these (B,) labels, None for an unconditional model."""
    spec = artefact.network
    return Condition(count, labels, spec.num_classes if spec.null_class else None)


def mixed_condition(
    artefact: ModelDescription, settings: SampleSettings, indices: Sequence[int]
) -> Condition:
    """Return the class of each image, from (seed, index) alone; no labels for an unconditional model.

    UsageError for the mix of the data if the model file does not contain it.
    """
    return labels_condition(artefact, _mixed_labels(artefact, settings, indices), len(indices))


def class_condition(artefact: ModelDescription, wanted: str, count: int) -> Condition:
    """Return the condition of images of one class, by name or number; UsageError lists the classes."""
    return labels_condition(artefact, torch.full((count,), class_index(artefact, wanted)), count)


def chosen_condition(
    artefact: ModelDescription, settings: SampleSettings, indices: Sequence[int], wanted: str | int | None
) -> Condition:
    """Return the condition of images of one class, or, without one, as `mixed_condition`."""
    if wanted is None:
        return mixed_condition(artefact, settings, indices)
    return class_condition(artefact, str(wanted), len(indices))


def _mixed_labels(
    artefact: ModelDescription, settings: SampleSettings, indices: Sequence[int]
) -> Tensor | None:
    classes = artefact.network.num_classes
    if not classes:
        return None
    if settings.classes == "balanced":
        return torch.tensor([index % classes for index in indices])
    if not artefact.data.counts:
        raise UsageError("classes data needs the class counts, which this model file lacks; use balanced")
    counts = torch.tensor(artefact.data.counts, dtype=torch.float64)
    draws = [
        torch.multinomial(counts, 1, generator=counter_generator("label", settings.seed, index))
        for index in indices
    ]
    return torch.cat(draws)


def class_index(artefact: ModelDescription, wanted: str) -> int:
    """Return the label of a class by name or number; UsageError lists the classes."""
    names = artefact.data.classes
    if not names:
        raise UsageError("this model is unconditional: it takes no class")
    if wanted in names:
        return names.index(wanted)
    if wanted.isdecimal() and len(wanted) < 10 and int(wanted) < len(names):
        return int(wanted)
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    raise UsageError(f"there is no class {brief(wanted)}: give 0 to {len(names) - 1}, or one of {shown}")
