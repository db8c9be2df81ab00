"""What images are conditioned on: classes by their index or by name, and low-resolution images."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion.process.denoiser import Condition
from diffusion.process.noise import counter_generator
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.guides import NO_GUIDES, Guides
from diffusion.sample.low_res import low_res_of
from diffusion.system.errors import UsageError
from diffusion.system.section import brief

if TYPE_CHECKING:  # images do not depend on the format of model files
    from diffusion.model.model_file import LoadedModel, ModelDescription


def labels_condition(artefact: "ModelDescription", labels: Tensor | None, count: int) -> Condition:
    """Return the condition of `count` images with these (B,) labels, None for an unconditional model."""
    spec = artefact.network
    return Condition(count, labels, spec.num_classes if spec.null_class else None)


def mixed_condition(
    artefact: "ModelDescription", settings: SampleSettings, indices: Sequence[int]
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


def class_condition(artefact: "ModelDescription", wanted: str | int, count: int) -> Condition:
    """Return the condition of images of one class; UsageError lists the classes.

    An integer is the label. A text is a name, or the label if no class has this name.
    """
    names = artefact.data.classes
    if not names:
        raise UsageError("this model is unconditional: it takes no class")
    label = names.index(wanted) if wanted in names else -1
    if isinstance(wanted, int) or (label < 0 and wanted.isdecimal() and len(wanted) < 10):
        label = int(wanted)
    if not 0 <= label < len(names):
        shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        raise UsageError(f"there is no class {brief(wanted)}: give 0 to {len(names) - 1}, or one of {shown}")
    return labels_condition(artefact, torch.full((count,), label), count)


def chosen_condition(
    artefact: "ModelDescription", settings: SampleSettings, indices: Sequence[int], wanted: str | int | None
) -> Condition:
    """Return the condition of images of one class, or, without one, as `mixed_condition`."""
    if wanted is None:
        return mixed_condition(artefact, settings, indices)
    return class_condition(artefact, wanted, len(indices))


def image_condition(
    loaded: "LoadedModel",
    settings: SampleSettings,
    indices: Sequence[int],
    guides: Guides = NO_GUIDES,
    wanted: str | int | None = None,
) -> Condition:
    """Return the condition of the images at `indices`, of one class or as `chosen_condition`.

    Where real images are enlarged, labels and low resolutions are theirs, of the class if one is given.
    """
    real, size, labelled = guides.real, loaded.artefact.network.low_res_size, guides.labelled(loaded)
    if real is None or size is None or settings.base is not None:
        return chosen_condition(labelled, settings, indices, wanted)
    real.check(loaded.artefact, labelled)
    label = None
    if wanted is not None:
        label = int(class_condition(labelled, wanted, 1).labels[0])  # type: ignore[index]
    rows = real.rows(indices, label)
    labels = real.labels(rows) if labelled.network.num_classes else None
    condition = labels_condition(labelled, labels, len(rows))
    return replace(condition, low_res=low_res_of(real.store.images[rows], size))


def base_condition(base: "ModelDescription", condition: Condition) -> Condition:
    """Return the condition of a base model's images, from that of the enlarged images."""
    labels = condition.labels if base.network.num_classes else None
    return labels_condition(base, labels, len(condition))
