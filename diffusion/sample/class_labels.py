"""Conditions of images: a mix of classes, one class by name, or given labels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.model.model_file import ModelDescription
from diffusion.process.denoiser import Condition
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
    classes, counts = artefact.network.num_classes, artefact.data.counts
    labels: Tensor | None = None
    if classes and settings.classes == "balanced":
        labels = torch.tensor([index % classes for index in indices])
    elif classes:
        if not counts:
            raise UsageError("classes data needs the class counts, which this model file lacks; use balanced")
        weights = torch.tensor(counts, dtype=torch.float64)
        sources = [counter_generator("label", settings.seed, index) for index in indices]
        labels = torch.cat([torch.multinomial(weights, 1, generator=source) for source in sources])
    return labels_condition(artefact, labels, len(indices))


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
