"""The content of a model repository on the Hugging Face hub."""

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from diffusion.images.pictures import MONTAGE_COLUMNS, contact_sheet, png_bytes
from diffusion.images.pixels import to_nhwc
from diffusion.images.store import Images
from diffusion.interop.model_card import CardInputs, model_card
from diffusion.interop.to_diffusers import pipeline_notes, save_pipeline
from diffusion.layout import MODEL, SCORES
from diffusion.model.model_file import LoadedModel
from diffusion.protocol.scores_document import write_scores_document
from diffusion.sample.conditions import image_condition
from diffusion.sample.generate import generate
from diffusion.sample.guides import Guides
from diffusion.sample.network_files import NetworkFiles, load_guides
from diffusion.system.errors import DiffctlError
from diffusion.system.files import copy_file, write_text

OnProgress = Callable[[int, int], object]
# What a publication may contain next to README.md and the model: the next one without it removes it.
OPTIONAL = (
    "base.safetensors",
    "guide.safetensors",
    "classifier.safetensors",
    "scores.json",
    "model_index.json",
    "class_names.json",
    "unet/*",
    "scheduler/*",
)


def write_hub_folder(
    folder: Path, card: CardInputs, loaded: LoadedModel, files: NetworkFiles, notify: OnProgress
) -> str:
    """Write samples, pipeline, networks, scores and README.md; return why there is no pipeline, or "".

    `notify` is called with the number of sampled images and of all.
    """
    images = _sample(card, loaded, load_guides(files, next(loaded.network.parameters()).device), notify)
    (folder / "samples.png").write_bytes(png_bytes(contact_sheet(images)))
    missing = ""
    try:  # in the root, so that `from_pretrained` finds it by the repository's name
        save_pipeline(loaded, folder)
        card = replace(card, pipeline_notes=pipeline_notes(loaded.artefact))
    except DiffctlError as error:
        missing = str(error)
    for kind, file in files.networks().items():
        copy_file(file, folder / f"{kind}{MODEL.suffix}")
    if card.scores is not None:
        write_scores_document(folder / SCORES.name, card.scores)
    write_text(folder / "README.md", model_card(card))
    return missing


def _sample(card: CardInputs, loaded: LoadedModel, guides: Guides, notify: OnProgress) -> Images:
    """Return the first images (N, H, W, C) by the card's settings, a row of the picture at a time."""
    device, indices = next(loaded.network.parameters()).device, range(card.num_images)
    condition = image_condition(loaded, card.settings, indices, guides)
    batches = []
    for start in range(0, len(indices), MONTAGE_COLUMNS):
        notify(start, len(indices))
        part = slice(start, start + MONTAGE_COLUMNS)
        made = generate(loaded, card.settings, indices[part], condition.rows(part), device, guides=guides)
        batches.append(to_nhwc(made))
    notify(len(indices), len(indices))
    return np.concatenate(batches)


def is_outdated(name: str, published: set[str]) -> bool:
    """Return whether a file is of an earlier publication and not among the published ones."""
    return name not in published and any(fnmatchcase(name, pattern) for pattern in OPTIONAL)
