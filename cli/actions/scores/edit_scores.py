"""Operators, methods and numbers of steps, scored on held-out pictures: `diffctl evaluate --edit`."""

import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import typer

from cli.commands.scores import WEIGHTS, Evaluate
from cli.models.model_choice import selected_source
from cli.shared.console import print_table, progress
from cli.shared.process import command_line
from diffusion.analysis.image_inputs import input_condition, known_labels, open_matching_store
from diffusion.edit.editor import Editor, edit_card, edit_protocol
from diffusion.edit.inputs import measure, show_edits
from diffusion.edit.operators import Measurement, build_operator
from diffusion.evaluate.adhoc import ScoringInputs, open_inputs, score_images
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extractors import space_extractor
from diffusion.images.pictures import sheet
from diffusion.images.pixels import to_nchw, to_nhwc
from diffusion.images.store import Images, ImageStore, content_digest
from diffusion.layout import PREPARED
from diffusion.model.model_file import LoadedModel, load_model
from diffusion.process.denoiser import Condition
from diffusion.protocol.edits import EditSettings
from diffusion.protocol.extractors import default_extractor, extractor_spec
from diffusion.protocol.resolution import resolve_settings
from diffusion.protocol.settings import SampleSettings
from diffusion.report.edit_report import (
    SCORES,
    interval_scores,
    mean_and_half,
    mean_scores,
    render_edits,
    scores_by_picture,
)
from diffusion.sample.network_files import NetworkFiles
from diffusion.system.devices import default_device
from diffusion.system.output_paths import write_output_text
from diffusion.system.section import validate
from diffusion.version import VERSION
from tracking.runs.score_logging import log_edit_scores

PICTURES, RESULTS = 100, 4
SHOWN = 4  # pictures of a cell on the page, with up to SHOWN_RESULTS results each
SHOWN_RESULTS = 6


class Originals(NamedTuple):
    """Held-out pictures, the condition of each, and how many results each gets."""

    store: ImageStore
    condition: Condition
    results: int


def score_edits(options: Evaluate) -> None:
    source, device = selected_source(options), default_device()
    run_id = source.run_id
    cells = list(_cells(options, source.schedule))
    loaded, networks = load_model(source.model, device), NetworkFiles(source.model).read()
    shape = loaded.artefact.network.shape
    operators = {text: build_operator(text, shape) for text in options.edit or ()}
    originals = _originals(options, loaded)
    inputs = open_inputs(originals.store.path, options.against or PREPARED, options.split)
    section = _section(options, inputs.sample.images.shape[1:3])
    pictures = list(originals.store.images)
    measured = {text: measure(one, pictures, 0.0, degrade=True) for text, one in operators.items()}
    scored: list[dict[str, Any]] = []
    sheets: list[Images] = []
    for done, (edit, settings) in enumerate(cells, start=1):
        measurement = measured[str(edit.operator)]
        with progress(f"{edit.operator}, {edit.method} ({done} of {len(cells)})") as show:
            editor = Editor(loaded, settings, edit, device)
            made = editor.results(measurement, originals.condition, originals.results, show)
        images = made.reshape(-1, originals.results, *made.shape[1:])
        scores = mean_scores(scores_by_picture(images, to_nchw(originals.store.images), measurement))
        card = edit_card(edit, settings, measurement, originals.condition, originals.results, networks)
        distance, card = _kernel_distance(images, card, inputs, section)
        cell = {"operator": edit.operator, "method": edit.method, "steps": settings.steps, "nfe": card["nfe"]}
        cell |= {"protocol": edit_protocol(card)}
        scored.append({**cell, "scores": scores | distance, "card": card})
        sheets.append(_sheet(pictures, measurement, images))
    store = originals.store
    about = {"path": str(store.path), "count": len(store), "results": originals.results}
    _report(options, {"diffctl": VERSION, "images": about, "cells": scored}, sheets, run_id)


def _report(
    options: Evaluate, document: dict[str, Any], sheets: Sequence[Images], run_id: str | None
) -> None:
    """Write the files that are requested, log the scores to the model's run, and print them."""
    if options.out is not None:
        write_output_text(options.out, json.dumps(document, indent=2) + "\n")
    if options.html is not None:
        write_output_text(options.html, render_edits(document, sheets, command_line()))
    if run_id is not None:
        log_edit_scores(run_id, document)
    options.answer(document, lambda: _show(document, run_id))
    if options.html is not None:
        typer.echo(f"page: {options.html}", err=options.as_json)


def _cells(options: Evaluate, schedule: str) -> Iterator[tuple[EditSettings, SampleSettings]]:
    """Yield each operator with each method and number of steps."""
    steps = (options.steps or "50").split(",")
    for operator, method, count in product(options.edit or (), options.method or ["ddnm"], steps):
        values = {"method": method, "operator": operator}
        given = {"steps": count.strip(), **options.given("spacing")}
        settings = resolve_settings(schedule, given, where="diffctl evaluate").settings
        yield validate(EditSettings, values, "--edit"), settings


def _originals(options: Evaluate, loaded: LoadedModel) -> Originals:
    """Return the first pictures of a store of the model's size, by default the test split."""
    store = open_matching_store(options.path, loaded.artefact)
    count = min(options.num_images or PICTURES, len(store))
    labels = known_labels(store, loaded.artefact, range(count))
    condition = input_condition(loaded.artefact, labels, None)
    images = np.array(store.images[:count])
    chosen = ImageStore(store.path, images, None, {**store.meta, "digest": content_digest(images, None)})
    return Originals(chosen, condition, options.num or RESULTS)


def _sheet(pictures: Sequence[Images], measurement: Measurement, images: torch.Tensor) -> Images:
    """Return the first pictures with their measurements, results and spread as one picture."""
    results = images[:SHOWN, :SHOWN_RESULTS]
    made = to_nhwc(results.flatten(0, 1))
    return sheet(*show_edits(pictures[:SHOWN], measurement.rows(slice(SHOWN)), made, results.shape[1]))


def _section(options: Evaluate, size: tuple[int, ...]) -> EvaluateConfig:
    """Return the settings of the kernel distance; errors as `space_extractor`, before any work."""
    names = [one.value for one in options.extractor or []] or [default_extractor(size)]
    given = options.given(*WEIGHTS, "batch_size", "kid_subset_size")
    section = validate(EvaluateConfig, {"extractor": names[0], **given}, "diffctl evaluate")
    space_extractor(section.spaces[0])
    return section


def _kernel_distance(
    images: torch.Tensor, card: dict[str, Any], inputs: ScoringInputs, section: EvaluateConfig
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the kernel distance of one result of each picture to real images, and the complete card."""
    first = to_nhwc(images[:, 0])
    meta = {"name": "edits", "digest": content_digest(first, None), "card": card}
    found = score_images(inputs._replace(sample=ImageStore(Path("edits"), first, None, meta)), section)
    kernel = extractor_spec(section.extractor).kernel_distance
    scores = {name: value for name, value in found["scores"].items() if name.startswith(kernel)}
    return scores, found["card"]


def _show(document: dict[str, Any], run_id: str | None) -> None:
    """Print a row for each cell; numbers have half of their intervals."""
    cells = document["cells"]
    names = interval_scores(cells[0]["scores"])
    rows = (
        [
            one["operator"],
            one["method"],
            str(one["nfe"]),
            *(mean_and_half(one["scores"], name) for name in names),
        ]
        for one in cells
    )
    print_table(("operator", "method", "NFE", *names), rows)
    images = document["images"]
    typer.echo(
        f"means over {images['count']} pictures of {images['path']}, {images['results']} result(s) each"
    )
    typer.echo("; ".join(f"{name}: {SCORES[name]}" for name in names if name in SCORES))
    if run_id is not None:
        typer.echo(f"logged to run {run_id}")
