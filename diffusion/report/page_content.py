"""The content of the report page: plain values, texts and figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml
from matplotlib.figure import Figure

from diffusion.choice.confidence import interval_of
from diffusion.choice.ranking import FEW_IMAGES
from diffusion.choice.selection import all_spaces
from diffusion.config import Config
from diffusion.images.pictures import png_bytes, sheet
from diffusion.images.store import ImageStore
from diffusion.images.store_meta import CellMeta
from diffusion.protocol.grid import Cell, cell_order, describe_cell, describe_line
from diffusion.protocol.paper_mismatches import mismatches
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.report import figures, formatting, sample_pictures, score_tables
from diffusion.report.comparisons import published_content, seeds_content
from diffusion.report.figure_base import as_svg
from diffusion.report.figures import CurvePoint
from diffusion.report.score_tables import best_cell, headline
from diffusion.train.checkpoint.run_record import TrainingFacts


@dataclass(frozen=True)
class ReportInputs:
    """The inputs of a report; `curve` and `facts` are the training's."""

    config: Config
    document: ScoresDocument
    cells: dict[Cell, ImageStore]
    train: ImageStore
    test: ImageStore
    curve: figures.TrainingCurve
    facts: TrainingFacts | None

    @property
    def best(self) -> ImageStore:
        """The samples of the best cell."""
        name = self.document.best.cell
        return next(store for cell, store in self.cells.items() if cell.name == name)


def draw(inputs: ReportInputs) -> dict[str, Figure]:
    """Draw the figures by name: `curve` (the distance), `kernel`, `front`, `loss` and `montage`."""
    document, spec = inputs.document, inputs.document.spec
    names = formatting.short_names(spec)
    distance, kernel = f"Fréchet distance, {names['distance']}", f"kernel distance, {names['kernel']}"
    tiles = {
        (cell.steps, describe_line(cell.axes)): sample_pictures.tile(store)
        for cell, store in inputs.cells.items()
    }
    return {
        "curve": _curve(document, spec.distance, distance),
        "kernel": _curve(document, spec.kernel_distance, kernel),
        "front": _front(document, distance if document.front[0].metric == spec.distance else kernel),
        "loss": figures.loss_curve(inputs.curve, f"{inputs.config.process.loss} loss"),
        "montage": figures.montage(tiles),
    }


def page_content(
    inputs: ReportInputs, drawn: dict[str, Figure], others: Sequence[ScoresDocument] = ()
) -> dict[str, Any]:
    """Return the variables of the template. `others` are scores of trainings with other seeds."""
    document, spec = inputs.document, inputs.document.spec
    names, front_metric = formatting.short_names(spec), document.front[0].metric
    front_name = formatting.score_name(spec, front_metric)
    if published := published_content(document):
        title = f"The curve of the sweep and {len(published['rows'])} published figures"
        published["drawing"] = as_svg(published["drawing"], "published", title)
    cards = [cell.card for cell in document.cells.values()]
    classes = inputs.best.meta.get("classes") or inputs.train.meta["classes"]
    alternatives = {
        "curve": _describe_curve(document, spec.distance, names["distance"]),
        "kernel": _describe_curve(document, spec.kernel_distance, names["kernel"]),
        "front": _describe_curve(document, front_metric, front_name, "NFE per image"),
        "loss": _describe_loss(inputs.curve),
    }
    return {
        "data": inputs.train.meta["name"],
        "spec": spec,
        "names": names,
        "reference": document.reference,
        "small": next(iter(document.cells.values())).num_images < FEW_IMAGES,
        "found": headline(document),
        "headline": best_cell(document),
        "scores": score_tables.score_table(document),
        "confidence": f"{document.intervals.confidence:.0%}" if document.intervals else None,
        "budgets": score_tables.front_table(document),
        "front_score": front_name,
        "spaces": _spaces(document),
        "seeds": seeds_content(document, others),
        **{name: as_svg(drawn[name], name, text) for name, text in alternatives.items()},
        "published": published,
        "mismatches": protocol_mismatches(inputs.config),
        "training": _training(inputs),
        "montage": _montage(inputs),
        "tile": sample_pictures.TILE,
        "class_rows": sample_pictures.class_rows(inputs.best, inputs.test, classes),
        "class_scores": _class_scores(inputs, len(classes)),
        "class_count": len(classes),
        "neighbours": sample_pictures.neighbour_pairs(inputs.best, inputs.train, inputs.test),
        "protocol": score_tables.protocol_table(cards),
        "config": _yaml(inputs.config),
    }


def protocol_mismatches(config: Config) -> dict[str, Any] | None:
    """Return the paper of `evaluate.protocol`, its mismatching fields and notes; None without one."""
    name = config.evaluate.protocol
    if name is None:
        return None
    rows = [one._asdict() for one in mismatches(name, config.model_dump(mode="json"))]
    return {"paper": PROTOCOLS[name].paper, "rows": rows, "remarks": PROTOCOLS[name].remarks}


def _spaces(document: ScoresDocument) -> dict[str, Any] | None:
    """Return curves, best cells and distances of all feature spaces; None for a single space."""
    if not document.spaces:
        return None
    seen = all_spaces(document)
    curves = []
    for number, one in enumerate(seen):
        distance = one.spec.distance
        label = f"{formatting.short_names(one.spec)['distance']}, {one.extractor}"
        description = _describe_curve(one, distance, label)
        curves.append(as_svg(_curve(one, distance, label), f"space{number}", description))
    return {
        "curves": curves,
        "best": [best_cell(one) | {"extractor": one.extractor} for one in seen],
        "table": score_tables.spaces_table(seen),
    }


def _curve(document: ScoresDocument, metric: str, label: str) -> Figure:
    cells = sorted(document.cells.values(), key=lambda cell: cell_order(cell.axes))
    points = [
        CurvePoint(one.steps, describe_line(one.axes), one.scores[metric], interval_of(one, metric))
        for one in cells
    ]
    return figures.score_curve(points, label, _level(document, metric))


def _level(document: ScoresDocument, metric: str) -> tuple[float, str] | None:
    """Return the score of held-out real images and the name of its line."""
    floor = document.reference.floor
    return (floor[metric], formatting.real_label(floor)) if floor and metric in floor else None


def _front(document: ScoresDocument, label: str) -> Figure:
    best_ones, metric = {chosen.cell for chosen in document.front}, document.front[0].metric
    points = [
        CurvePoint(cell.nfe, figures.FRONT if name in best_ones else figures.NO_FRONT, cell.scores[metric])
        for name, cell in document.cells.items()
    ]
    return figures.front(sorted(points), label, _level(document, metric))


def _class_scores(inputs: ReportInputs, count: int) -> dict[str, Any] | None:
    """Return the excess by class in the best cell, or the distance if no class has one; None without both."""
    document = inputs.document
    classes = document.cells[document.best.cell].classes
    metric = "excess" if any("excess" in entry for entry in classes.values()) else document.spec.distance
    values = {name: entry[metric] for name, entry in classes.items() if metric in entry}
    if not values:
        return None
    places = formatting.decimals(list(values.values()))
    texts = {name: formatting.number(value, places) for name, value in values.items()}
    return {"is_excess": metric == "excess", "all": len(texts) == count, "values": texts}


def _montage(inputs: ReportInputs) -> dict[str, Any]:
    """Return the montage: a row per line of the curves, with an entry or None for each number of steps."""
    spec, scores = inputs.document.spec, inputs.document.cells
    places = formatting.decimals([cell.scores[spec.distance] for cell in scores.values()])
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for cell, store in sorted(inputs.cells.items(), key=lambda item: cell_order(item[0].axes)):
        entry = {
            "image": sample_pictures.data_uri(png_bytes(sample_pictures.tile(store))),
            "alt": f"Images 0 to {sample_pictures.TILE - 1} sampled in {describe_cell(cell.axes)}",
            "distance": formatting.number(scores[cell.name].scores[spec.distance], places),
            "best": cell.name == inputs.document.best.cell,
        }
        rows.setdefault(describe_line(cell.axes), {})[cell.steps] = entry
    steps = sorted({cell.steps for cell in inputs.cells})
    labels = None if inputs.best.labels is None else inputs.best.labels.tolist()
    real = sample_pictures.real_images(inputs.test, labels, sample_pictures.TILE)
    return {
        "real": sample_pictures.data_uri(png_bytes(sheet(real, sample_pictures.TILE_COLUMNS))),
        "steps": steps,
        "rows": [{"line": line, "cells": [row.get(one) for one in steps]} for line, row in rows.items()],
    }


def _training(inputs: ReportInputs) -> list[tuple[str, str]]:
    """Return names and values of the training's facts."""
    train, curve = inputs.config.train, inputs.curve
    return [
        *_facts(inputs),
        *_lineage(inputs),
        ("images", f"{len(inputs.train):,}"),
        ("steps", f"{train.steps:,}"),
        ("batch size", f"{train.batch_size:,}"),
        ("learning rate", train.lr.describe()),
        ("EMA decay", f"{train.ema_decay:g}"),
        ("loss", inputs.config.process.loss),
        ("last loss (moving average)", f"{figures.moving_average(curve.loss)[-1]:.4g}"),
        *curve.facts(),
    ]


def _facts(inputs: ReportInputs) -> list[tuple[str, str]]:
    """Return when, how long, on what and from which commit the model was trained."""
    facts, total = inputs.facts, inputs.config.train.steps
    if facts is None:
        return []
    ended = datetime.fromtimestamp(facts.ended, UTC)
    since = f" (from step {facts.first_step:,})" if facts.first_step else ""
    rows = [
        ("finished", f"{ended:%Y-%m-%d %H:%M} UTC"),
        ("duration", f"{timedelta(seconds=round(facts.seconds))} h:min:s{since}"),
        ("hardware", facts.hardware),
        ("parameters", f"{facts.parameters:,}"),
        ("commit", (facts.commit or "–").replace("+", ", with uncommitted edits")),
    ]
    return [row for row in rows if row[0] != "duration" or facts.first_step < total]


def _lineage(inputs: ReportInputs) -> list[tuple[str, str]]:
    """Return the pretrained models of the training, and what was frozen or slowed down."""
    start, lineage = inputs.config.train.init_from, CellMeta.model_validate(inputs.best.meta).lineage
    rows = []
    for place, one in enumerate(lineage):
        text = f"{one.sha256[:16]}: {one.step:,} steps of {one.data} ({one.digest[:16]})"
        rows.append(("before that" if place else "started from", text))
    if start is not None and start.freeze:
        rows.append(("frozen", ", ".join(start.freeze)))
    if start is not None and start.lr_scale != 1:
        rows.append(("rate of what was there", f"{start.lr_scale:g} of the learning rate"))
    return rows


def _yaml(config: Config) -> str:
    """Format all values that the stage depends on, lists on one line."""

    class Dumper(yaml.SafeDumper):
        def represent_list(self, data: Any) -> yaml.SequenceNode:
            return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)

    Dumper.add_representer(list, Dumper.represent_list)
    values = config.model_dump(mode="json", exclude={"classifier"})
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def _describe_curve(
    document: ScoresDocument, metric: str, label: str, cost: str = "the number of sampling steps"
) -> str:
    """Describe a curve in words."""
    values = [cell.scores[metric] for cell in document.cells.values()]
    places = formatting.decimals(values)
    low, high = formatting.number(min(values), places), formatting.number(max(values), places)
    return f"{label} over {cost}, between {low} and {high}"


def _describe_loss(curve: figures.TrainingCurve) -> str:
    smooth = figures.moving_average(curve.loss)
    text = f"Training loss over {curve.steps[-1]:.0f} steps, from {smooth[0]:.3g} to {smooth[-1]:.3g}"
    return text + "".join(f"; {label} {values[-1]:.3g}" for label, values in curve.lines().items())
