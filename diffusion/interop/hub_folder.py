"""The content of a model repository on the Hugging Face hub."""

from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from diffusion.images.pictures import contact_sheet, png_bytes
from diffusion.images.pixels import to_nhwc
from diffusion.interop.to_diffusers import pipeline_notes, save_pipeline
from diffusion.layout import MODEL, SCORES
from diffusion.model.model_file import LoadedModel
from diffusion.protocol.scores_document import write_scores_document
from diffusion.report.model_card import CardInputs, model_card
from diffusion.sample.generate import OnStep, chosen_condition, generate
from diffusion.sample.network_files import NetworkFiles, load_guides
from diffusion.system.errors import DiffctlError
from diffusion.system.files import copy_file, write_text

# What a publication may contain next to README.md and the model: the next one without it removes it.
OPTIONAL = (
    "guide.safetensors",
    "classifier.safetensors",
    "scores.json",
    "model_index.json",
    "class_names.json",
    "unet/*",
    "scheduler/*",
)


def write_hub_folder(
    folder: Path, card: CardInputs, loaded: LoadedModel, files: NetworkFiles, on_step: OnStep | None = None
) -> str:
    """Write samples, pipeline, networks, scores and README.md; return why there is no pipeline, or ""."""
    device, indices = next(loaded.network.parameters()).device, range(card.num_images)
    guides = load_guides(files, device)
    condition = chosen_condition(guides.labelled(loaded), card.settings, indices, None)
    images = generate(loaded, card.settings, indices, condition, device, on_step, guides)
    (folder / "samples.png").write_bytes(png_bytes(contact_sheet(to_nhwc(images))))
    missing = ""
    try:  # in the root, so that `from_pretrained` finds it by the repository's name
        save_pipeline(loaded, folder)
        card = replace(card, pipeline_notes=pipeline_notes(loaded.artefact))
    except DiffctlError as error:
        missing = str(error)
    for kind, file in files._asdict().items():
        if file is not None:
            copy_file(file, folder / f"{kind}{MODEL.suffix}")
    if card.scores is not None:
        write_scores_document(folder / SCORES.name, card.scores)
    write_text(folder / "README.md", model_card(card))
    return missing


def is_outdated(name: str, published: set[str]) -> bool:
    """Return whether a file is of an earlier publication and not among the published ones."""
    return name not in published and any(fnmatchcase(name, pattern) for pattern in OPTIONAL)
