"""The content of a model repository on the Hugging Face hub, and its model card.

The card is README.md with the metadata that the hub reads. A metric is listed under its own name, so `fid` is
there only if the extractor is Inception.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from diffusion.choice.confidence import interval_of
from diffusion.choice.selection import all_spaces, describe_optimism
from diffusion.images.pictures import MONTAGE, MONTAGE_COLUMNS, contact_sheet, png_bytes
from diffusion.images.pixels import to_nhwc
from diffusion.images.store import Images
from diffusion.interop.to_diffusers import pipeline_notes, save_pipeline
from diffusion.layout import MODEL, SCORES
from diffusion.model.model_file import Artefact, LoadedModel
from diffusion.protocol.grid import describe_cell, effective_axes
from diffusion.protocol.scores_document import ScoresDocument, write_scores_document
from diffusion.protocol.settings import SampleSettings
from diffusion.report.formatting import describe_model, escape_markdown, markdown_table
from diffusion.report.score_tables import headline, protocol_table, score_columns, score_table
from diffusion.report.theme import render_text
from diffusion.sample.conditions import image_condition
from diffusion.sample.generate import generate
from diffusion.sample.guides import Guides
from diffusion.sample.network_files import Recipe
from diffusion.system.errors import DiffctlError
from diffusion.system.files import copy_file, write_text
from diffusion.system.section import fingerprint

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
TEMPLATE = Path(__file__).with_name("model_card.md.j2")
MAX_PIPELINE_STEPS = 50  # in the example for diffusers


@dataclass(frozen=True)
class CardInputs:
    """What a model card is made of.

    `repo` is the repository (user/name), `settings` and `num_images` are those of samples.png, `options` the
    options of `diffctl sample` for these settings. `pipeline_notes` are None without a diffusers pipeline.
    `license` and `datasets` are identifiers of the hub that the user gave.
    """

    repo: str
    artefact: Artefact
    scores: ScoresDocument | None
    settings: SampleSettings
    options: str
    pipeline_notes: list[str] | None = None
    license: str | None = None
    datasets: tuple[str, ...] = ()
    num_images: int = MONTAGE

    @property
    def name(self) -> str:
        """The name of the repository without its owner."""
        return self.repo.rpartition("/")[2]

    @property
    def is_conditional(self) -> bool:
        """Whether the model takes classes."""
        return bool(self.artefact.network.num_classes)

    @property
    def enlarges_real(self) -> bool:
        """Whether samples.png enlarges images that a reader lacks."""
        return self.artefact.network.low_res_size is not None and self.settings.base is None


def model_card(inputs: CardInputs) -> str:
    """Return README.md: equal inputs give equal text."""
    scores, steps = inputs.scores, inputs.artefact.process.max_steps
    divisors = [one for one in range(1, min(steps, MAX_PIPELINE_STEPS) + 1) if steps % one == 0]
    values: dict[str, Any] = {}
    if scores is not None:
        values = {
            "headline": headline(scores),
            "optimism": describe_optimism(scores.best),
            "tables": [(one.extractor, _table(score_table(one))) for one in all_spaces(scores)],
            "protocol": protocol_table([cell.card for cell in scores.cells.values()]),
        }
    text = render_text(
        TEMPLATE,
        metadata=yaml.safe_dump(metadata(inputs), sort_keys=False, allow_unicode=True),
        card=inputs,
        about=describe_model(inputs.artefact),
        sampled=_describe_samples(inputs),
        pipeline_steps=divisors[-1],
        escape=escape_markdown,
        **values,
    )
    return text.rstrip() + "\n"


def _describe_samples(inputs: CardInputs) -> str:
    """Return how samples.png was made."""
    words = [describe_cell(effective_axes(inputs.settings))]
    if inputs.enlarges_real:
        words.append("enlargements of held-out images")
    elif inputs.is_conditional and inputs.settings.classes == "balanced":
        words.append("classes in turn")
    elif inputs.is_conditional:
        words.append("classes drawn as often as in the data")
    return ", ".join(words)


def _table(table: Mapping[str, Any]) -> str:
    """Return a table of scores as Markdown, the best cell in bold."""
    rows = []
    for row in table["rows"]:
        mark = "**" * row.get("best", False)
        axes = row.get("axes") or [row["label"], *[""] * (len(table["axes"]) - 1)]
        scores = [
            entry["text"] + (f" ± {entry['half']}" if entry["half"] else "") for entry in row["entries"]
        ]
        rows.append([*(f"{mark}{escape_markdown(text)}{mark}" for text in axes), *scores])
    return markdown_table([*table["axes"], *table["columns"]], rows)


def metadata(inputs: CardInputs) -> dict[str, Any]:
    """Return the metadata block that the hub reads.

    `library_name` is diffusers only if its pipeline samples the model by itself, which needs no classes.
    """
    has_pipeline, conditional = inputs.pipeline_notes is not None, inputs.is_conditional
    tags = ["diffctl", "pytorch", "diffusion", *["diffusers"] * has_pipeline]
    values = {
        "license": inputs.license,
        "library_name": "diffusers" if has_pipeline and not conditional else "diffctl",
        "pipeline_tag": None if conditional else "unconditional-image-generation",
        "tags": [*tags, *["class-conditional"] * conditional],
        "datasets": list(inputs.datasets),
        "model-index": inputs.scores
        and [{"name": inputs.name, "results": [_results(inputs, inputs.scores)]}],
    }
    return {key: value for key, value in values.items() if value}


def _results(inputs: CardInputs, scores: ScoresDocument) -> dict[str, Any]:
    """Return the distances of the best cell, each with the protocol that it depends on."""
    data, reference = inputs.artefact.data.name, scores.reference
    kind = "image-generation" if inputs.is_conditional else "unconditional-image-generation"
    metrics = []
    for space in all_spaces(scores):
        cell, headings = space.cells[scores.best.cell], score_columns(space)
        for metric in (*space.spec.distances, *space.spec.results):
            if metric not in cell.scores:
                continue
            against = f"{reference.reference_count:,} of {reference.name} ({reference.reference_split})"
            protocol = f"{space.extractor}, {cell.num_images:,} images against {against}"
            ends = interval_of(cell, metric)
            interval = {} if ends is None else {"interval_95": [_short(end) for end in ends]}
            metrics.append(
                {
                    "type": metric,
                    "name": f"{headings.get(metric, metric)} ({protocol}; {describe_cell(cell.axes)})",
                    "value": _short(cell.scores[metric]),
                    "args": {**interval, "card": fingerprint(cell.card)},  # scores.json has the card
                }
            )
    return {
        "task": {"type": kind, "name": kind.replace("-", " ").capitalize()},
        "dataset": {
            "type": (inputs.datasets or (data,))[0],
            "name": data,
            "split": reference.reference_split,
        },
        "metrics": metrics,
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def write_hub_folder(
    folder: Path, card: CardInputs, recipe: Recipe, device: torch.device, notify: OnProgress
) -> str:
    """Write samples, pipeline, networks, scores and README.md; return why there is no pipeline, or "".

    `notify` is called with the number of sampled images and of all.
    """
    loaded, guides = recipe.load(device)
    images = _sample(card, loaded, guides, notify)
    (folder / "samples.png").write_bytes(png_bytes(contact_sheet(images)))
    missing = ""
    try:  # in the root, so that `from_pretrained` finds it by the repository's name
        save_pipeline(loaded, folder)
        card = replace(card, pipeline_notes=pipeline_notes(loaded.artefact))
    except DiffctlError as error:
        missing = str(error)
    for kind, file in recipe.files.networks().items():
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
