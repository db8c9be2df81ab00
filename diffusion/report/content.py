"""All that the page shows, computed: plain values, texts, and figures that are not drawn into a file yet."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from diffusion.choice.certainty import interval_of
from diffusion.choice.ranking import FEW_IMAGES
from diffusion.config import Config
from diffusion.images.pictures import png_bytes
from diffusion.images.store import Images, ImageStore
from diffusion.protocol.extractors import ExtractorSpec
from diffusion.protocol.grid import Cell, line_name, order, spoken
from diffusion.protocol.scores import ScoresDocument
from diffusion.report import figures, samples, tables


@dataclass(frozen=True)
class Inputs:
    """What a report is made of: `loss` maps a column of the training's CSV to its values."""

    config: Config
    document: ScoresDocument
    cells: dict[Cell, ImageStore]
    train: ImageStore
    test: ImageStore
    loss: dict[str, NDArray[np.float64]]

    @property
    def spec(self) -> ExtractorSpec:
        """The extractor that the scores are of."""
        return self.document.spec

    @property
    def best(self) -> ImageStore:
        """The samples of the best cell."""
        name = self.document.best.cell
        return next(store for cell, store in self.cells.items() if cell.name == name)


def draw(inputs: Inputs) -> dict[str, Figure]:
    """The figures by name: `curve` (the distance), `kernel`, `front`, `loss` and `montage`."""
    spec, names = inputs.spec, tables.short_names(inputs.spec)
    tiles = {(cell.steps, line_name(cell.axes)): samples.tile(store) for cell, store in inputs.cells.items()}
    return {
        "curve": _curve(inputs.document, spec.distance, names["distance"]),
        "kernel": _curve(inputs.document, spec.kernel_distance, names["kernel"]),
        "front": _front(inputs.document, spec.distance, names["distance"]),
        "loss": figures.loss_curve(inputs.loss["step"], inputs.loss["loss"]),
        "montage": figures.montage(tiles),
    }


def page_content(inputs: Inputs, drawn: dict[str, Figure]) -> dict[str, Any]:
    """The template's variables."""
    document, spec = inputs.document, inputs.spec
    names = tables.short_names(spec)
    cards = [cell.card for cell in document.cells.values()]
    classes = inputs.best.meta.get("classes") or inputs.train.meta["classes"]
    spoken_of = {
        "curve": _spoken(document, spec.distance, names["distance"]),
        "kernel": _spoken(document, spec.kernel_distance, names["kernel"]),
        "front": _spoken(document, spec.distance, names["distance"], "network evaluations an image"),
        "loss": _spoken_loss(inputs.loss),
    }
    return {
        "data": inputs.train.meta["name"],
        "spec": spec,
        "names": names,
        "reference": document.reference,
        "small": next(iter(document.cells.values())).num_images < FEW_IMAGES,
        "headline": tables.headline(document, spec),
        "scores": tables.score_table(document, spec),
        "confidence": f"{document.intervals.confidence:.0%}" if document.intervals else None,
        "budgets": tables.front_table(document, spec),
        **{name: Markup(figures.as_svg(drawn[name], name, spoken)) for name, spoken in spoken_of.items()},
        "training": _training(inputs),
        "montage": _montage(inputs),
        "tile": samples.TILE,
        "class_rows": samples.class_rows(inputs.best, classes),
        "class_scores": _class_scores(inputs),
        "class_count": len(classes),
        "neighbours": samples.neighbour_pairs(inputs.best, inputs.train, inputs.test),
        "protocol": tables.protocol_table(cards),
        "config": _yaml(inputs.config),
    }


def _curve(document: ScoresDocument, metric: str, label: str) -> Figure:
    points = [
        figures.Point(cell.steps, line_name(cell.axes), cell.scores[metric], interval_of(cell, metric))
        for cell in sorted(document.cells.values(), key=lambda cell: order(cell.axes))
    ]
    return figures.score_curve(points, label, _level(document, metric))


def _level(document: ScoresDocument, metric: str) -> tuple[float, str] | None:
    """What held-out real images score, and the name of that line."""
    floor = document.reference.floor
    return (floor[metric], "real, held out") if floor else None


def _front(document: ScoresDocument, metric: str, label: str) -> Figure:
    best_ones = {chosen.cell for chosen in document.front}
    offers = [
        figures.Offer(cell.evaluations, cell.scores[metric], name in best_ones)
        for name, cell in document.cells.items()
    ]
    return figures.front(sorted(offers), label, _level(document, metric))


def _class_scores(inputs: Inputs) -> dict[str, str]:
    """By class, the distance in the best cell above that of held-out real images, or the bare distance."""
    scores = inputs.document.cells[inputs.document.best.cell].classes
    values = {name: entry.get("excess", entry[inputs.spec.distance]) for name, entry in scores.items()}
    places = tables.decimals(list(values.values()))
    return {name: tables.number(value, places) for name, value in values.items()}


def _montage(inputs: Inputs) -> dict[str, Any]:
    """A row for each of the curves' lines, columns steps; a cell's picture, its description, its distance."""
    spec, scores = inputs.spec, inputs.document.cells
    places = tables.decimals([cell.scores[spec.distance] for cell in scores.values()])
    chosen = inputs.document.best.cell

    def entry(cell: Cell, picture: Images) -> dict[str, Any]:
        return {
            "image": samples.data_uri(png_bytes(picture)),
            "alt": f"Images 0 to {samples.TILE - 1} sampled in {spoken(cell.axes)}",
            "distance": tables.number(scores[cell.name].scores[spec.distance], places),
            "best": cell.name == chosen,
        }

    rows: dict[str, list[dict[str, Any]]] = {}
    for cell, store in sorted(inputs.cells.items(), key=lambda item: order(item[0].axes)):
        rows.setdefault(line_name(cell.axes), []).append(entry(cell, samples.tile(store)))
    return {
        "steps": sorted({cell.steps for cell in inputs.cells}),
        "rows": [{"line": line, "cells": cells} for line, cells in rows.items()],
    }


def _training(inputs: Inputs) -> list[tuple[str, str]]:
    """Name and value of what a reader asks about the training."""
    train, loss = inputs.config.train, inputs.loss["loss"]
    return [
        ("images", f"{len(inputs.train):,}"),
        ("steps", f"{train.steps:,}"),
        ("batch size", f"{train.batch_size:,}"),
        ("learning rate", f"{train.lr:g}"),
        ("EMA decay", f"{train.ema_decay:g}"),
        ("loss", inputs.config.process.loss),
        ("last loss (moving average)", f"{figures.moving_average(loss)[-1]:.4g}"),
    ]


def _yaml(config: Config) -> str:
    """All values of the configuration, lists on one line as a person writes them."""

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(
        list,
        lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True),
    )
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def _spoken(
    document: ScoresDocument, metric: str, label: str, cost: str = "the number of sampling steps"
) -> str:
    """A curve in words."""
    values = [cell.scores[metric] for cell in document.cells.values()]
    places = tables.decimals(values)
    low, high = tables.number(min(values), places), tables.number(max(values), places)
    return f"{label} over {cost}, between {low} and {high}"


def _spoken_loss(loss: dict[str, NDArray[np.float64]]) -> str:
    smooth = figures.moving_average(loss["loss"])
    return f"Training loss over {loss['step'][-1]:.0f} steps, from {smooth[0]:.3g} to {smooth[-1]:.3g}"
