"""Images that are given, by number in a store or as files, and the classes they are of."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from diffusion.images.image_size import format_pixels, format_size
from diffusion.images.pictures import fit, read_picture
from diffusion.images.store import Images, ImageStore, open_store
from diffusion.layout import PREPARED
from diffusion.model.model_file import Artefact, LoadedModel, ModelDescription
from diffusion.process.denoiser import Condition
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import class_condition, labels_condition
from diffusion.sample.guides import Guides
from diffusion.sample.low_res import low_res_of, noised_condition
from diffusion.system.errors import UsageError, printable

DIGITS = 18  # of an image's number
NO_EDITS = "a model that enlarges images (model.low_res) does not edit them: use another one"


class InputImage(NamedTuple):
    """`pixels` (H, W, C) uint8, and the label where it is known in the model's classes.

    `resized` has a sentence if they are the middle of a file of another size.
    """

    pixels: Images
    label: int | None
    resized: str = ""


def load_input(name: str, store: Path | None, artefact: Artefact) -> InputImage:
    """Return the image of a number or a file name, a file's middle at the model's size.

    UsageError if there is none, or it cannot be read.
    """
    spec = artefact.network
    if not name.isdecimal():
        pixels = read_picture(Path(name), None, spec.in_channels)
        found = pixels.shape[:2]
        middle = f"{printable(name)}: the middle of {format_pixels(found)} at {format_size(spec.size)}"
        return InputImage(fit(pixels, spec.size), None, "" if found == spec.size else middle)
    opened = open_matching_store(store, artefact)
    index = int(name) if len(name) <= DIGITS else len(opened)
    if index >= len(opened):
        raise UsageError(f"there is no image {name[:DIGITS]} in {opened.path}: give 0 to {len(opened) - 1}")
    return InputImage(opened.images[index], known_labels(opened, artefact, [index])[0])


def load_first(num: int, store: Path | None, artefact: Artefact) -> list[InputImage]:
    """Return the first `num` images of the store, or all."""
    opened = open_matching_store(store, artefact)
    indices = range(min(num, len(opened)))
    labels = known_labels(opened, artefact, indices)
    return [InputImage(opened.images[index], label) for index, label in zip(indices, labels, strict=True)]


def open_matching_store(path: Path | None, artefact: Artefact) -> ImageStore:
    """Return the store, by default the test split; UsageError if its images are not the model's size."""
    store = open_store(path or PREPARED / "test")
    found, ours = (format_size(shape) for shape in (store.images.shape[1:], artefact.network.pixel_shape))
    if found != ours:
        raise UsageError(f"the images in {store.path} are {found}, the model's {ours}")
    return store


def known_labels(store: ImageStore, artefact: ModelDescription, indices: Sequence[int]) -> list[int | None]:
    """Return the images' labels; None each where the store has none or other classes than the model."""
    labels = store.labels
    if labels is None or list(store.meta.get("classes", [])) != list(artefact.data.classes):
        return [None] * len(indices)
    return [int(labels[index]) for index in indices]


def input_condition(
    artefact: Artefact, found: Sequence[int | None], klass: str | int | None, images: Images | None = None
) -> Condition:
    """Return the condition of images: the given class, else each image's own, else "no label".

    For a model that enlarges images it has the low resolutions of `images` (B, H, W, C). UsageError if the
    class is unknown and the model was trained without "no label", or if such a model edits images.
    """
    spec, condition = artefact.network, _input_labels(artefact, found, klass)
    if spec.low_res_size is None:
        return condition
    if images is None:
        raise UsageError(NO_EDITS)
    condition = replace(condition, low_res=low_res_of(images, spec.low_res_size))
    return noised_condition(spec, SampleSettings(), range(len(found)), condition)


def edit_condition(
    loaded: LoadedModel,
    guides: Guides,
    settings: SampleSettings,
    found: Sequence[int | None],
    klass: str | int | None,
) -> Condition:
    """Return the condition of pictures to edit, as `input_condition`, with the classes that guide.

    UsageError if something guides towards a class, and that of a picture is unknown.
    """
    if loaded.artefact.network.low_res_size is not None:
        raise UsageError(NO_EDITS)
    is_towards_class = settings.guidance > 0 and GUIDANCE_RULES[settings.rule].needs_null
    if guides.model is not None:
        guide = guides.model.artefact.network
        is_towards_class |= bool(guide.num_classes) and not guide.null_class
    if (is_towards_class or settings.has_classifier) and klass is None and None in found:
        unknown = f"the class of {found.count(None)} of {len(found)} picture(s) is unknown"
        raise UsageError(f"guidance is towards a class, and {unknown}: give a class, or leave guidance out")
    return _input_labels(guides.labelled(loaded), found, klass)


def _input_labels(
    artefact: ModelDescription, found: Sequence[int | None], klass: str | int | None
) -> Condition:
    spec = artefact.network
    if klass is not None:
        return class_condition(artefact, klass, len(found))
    if not spec.num_classes:
        return labels_condition(artefact, None, len(found))
    if None in found and not spec.null_class:
        raise UsageError("this model needs to know the image's class: give one of its classes")
    labels = [spec.num_classes if label is None else label for label in found]
    return labels_condition(artefact, torch.tensor(labels), len(found))


def end_condition(
    artefact: Artefact, found: Sequence[int | None], klass: str | int | None, images: Images | None = None
) -> Condition:
    """Return that of an interpolation's two ends: "no label" if they differ and the model has it."""
    if klass is None and artefact.network.null_class and found[0] != found[1]:
        found = [None, None]
    return input_condition(artefact, found, klass, images)
