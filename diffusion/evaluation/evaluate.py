"""The `evaluate` stage: every cell of the grid against the reference, with its protocol card."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusion.config import Config
from diffusion.data.store import ImageStore, open_store
from diffusion.errors import DiffctlError
from diffusion.evaluation.card import Card, differing, protocol_card
from diffusion.evaluation.extractors import Extractor, load_extractor
from diffusion.evaluation.features import Features, extract, shifted, verify
from diffusion.evaluation.floor import Floor
from diffusion.evaluation.reference import Reference, open_reference
from diffusion.evaluation.scores import all_scores, inception_score
from diffusion.files import write_json, write_text
from diffusion.grid import AXES, Cell, cell_settings, grid, line_name, order, settings_card
from diffusion.precision import default_device

Document = dict[str, Any]
Progress = Callable[[int, int], None]


def evaluate(
    config: Config,
    samples: Path,
    reference: Path,
    progress: Progress | None = None,
    prepared: Path | None = None,
) -> Document:
    """Score every cell of the config's grid; returns the document that metrics/scores.json holds.

    `progress` gets (done, total) images. DiffctlError for a cell that is missing, of another protocol than
    the config's or of another model than its neighbours, and for a stale reference; with `prepared` also
    when the reference was made of other images than lie there. All of it is checked before work starts.
    """
    section = config.evaluate
    stores = {cell: open_cell(config, samples, cell) for cell in grid(config)}
    _refuse_mixed_cards(stores)
    extractor = load_extractor(section.extractor, section.weights, default_device())
    opened = open_reference(reference, extractor, section.reference, prepared)
    return score_cells(stores, opened, extractor, section.batch_size, progress)


def open_cell(config: Config, samples: Path, cell: Cell) -> ImageStore:
    """A cell's images; DiffctlError when they are missing or not what the config asks for."""
    path = samples / cell.name
    again = "make it with `diffctl stage sample`"
    if not path.is_dir():
        raise DiffctlError(f"cell {cell.name} is not in {samples}: {again}")
    store = open_store(path)
    card = store.meta.get("card")
    if card is None:
        raise DiffctlError(f"the images in {path} have no protocol card: {again}")
    wanted = {
        **settings_card(cell_settings(config, cell)),
        "num_images": config.sample.num_images,
    }
    if wrong := differing([{field: card.get(field) for field in wanted}, wanted]):
        field, (has, wants) = next(iter(wrong.items()))
        raise DiffctlError(f"cell {cell.name} was sampled with {field} {has}, not {wants}: {again} again")
    if len(store) != config.sample.num_images:
        raise DiffctlError(
            f"cell {cell.name} holds {len(store)} images, not {config.sample.num_images}: {again} again"
        )
    return store


def score_cells(
    stores: dict[Cell, ImageStore],
    reference: Reference,
    extractor: Extractor,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Document:
    """The scores document of open cells, each image seen by the extractor once."""
    total = sum(len(store) for store in stores.values())
    floors: dict[int, Floor | None] = {}
    cells = {}
    done = 0
    for cell, store in stores.items():
        sample = _features(store, extractor, batch_size, done, total, progress)
        done += len(store)
        if len(store) not in floors:
            floors[len(store)] = reference.floor(len(store))
        cells[cell.name] = {
            **cell.axes,
            "scores": score(sample, reference, extractor, floors[len(store)]),
            "card": protocol_card(store.meta["card"], len(store), reference),
        }
    floor = next(iter(floors.values()))
    return {
        "extractor": extractor.spec.name,
        "reference": {**reference.meta, **real_scores(reference, extractor, floor)},
        "cells": cells,
    }


def score(
    sample: Features, reference: Reference, extractor: Extractor, floor: Floor | None
) -> dict[str, float]:
    """A sample's scores by name, with `floor` and `excess` (the distance above it) where there is a floor."""
    scores = all_scores(extractor.spec, sample, reference.features, reference.statistics)
    if floor is not None:
        scores["floor"] = floor.distance
        scores["excess"] = scores[extractor.spec.distance] - floor.distance
    return scores


def write_scores(document: Document, scores: Path, curves: Path) -> None:
    """Write the document as JSON and, for plots, as a long CSV: cell, line, the axes, metric, value."""
    write_json(scores, document)
    cells = sorted(document["cells"].items(), key=lambda item: order(item[1]))
    axes = [axis for axis in AXES if any(axis in cell for _, cell in cells)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cell", "line", *axes, "metric", "value"])
    for name, cell in cells:
        point = [name, line_name(cell), *(cell.get(axis, "") for axis in axes)]
        writer.writerows([*point, metric, value] for metric, value in sorted(cell["scores"].items()))
    write_text(curves, text.getvalue())


def _features(
    store: ImageStore,
    extractor: Extractor,
    batch_size: int,
    before: int,
    total: int,
    progress: Progress | None,
) -> Features:
    verify(store)
    return extract(extractor, store.images, batch_size, shifted(progress, before, total))


def real_scores(reference: Reference, extractor: Extractor, floor: Floor | None) -> dict[str, Any]:
    """What the held-out real images score themselves, under the extractor's names and with their N."""
    if floor is None or reference.heldout is None:
        return {}
    spec = extractor.spec
    real = inception_score(reference.heldout.logits)
    return {
        "floor": {
            "num_images": floor.num_images,
            "extrapolated": floor.extrapolated,
            spec.distance: floor.distance,
            spec.kernel_distance: floor.kernel_distance.mean,
            f"{spec.kernel_distance}_std": floor.kernel_distance.std,
            spec.score: real.mean,
            f"{spec.score}_std": real.std,
        }
    }


def _refuse_mixed_cards(stores: dict[Cell, ImageStore]) -> None:
    cards: list[Card] = [store.meta["card"] for store in stores.values()]
    if wrong := differing(cards, AXES):
        raise DiffctlError(
            f"the cells of this sweep are not of one protocol, they differ in {', '.join(wrong)}: "
            f"make them with `diffctl stage sample`"
        )
