"""The `evaluate` stage: every cell of the grid against the reference, with its protocol card."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffusion.choice.certainty import CONFIDENCE
from diffusion.choice.chosen import chosen_best, chosen_front
from diffusion.choice.ranking import is_aside
from diffusion.evaluate.beside import Tally, side_by_side
from diffusion.evaluate.config import EvaluateConfig
from diffusion.evaluate.features.extract import Features, extract
from diffusion.evaluate.features.extractors import Extractor, configured_extractor
from diffusion.evaluate.features.reference import open_reference
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.images.store import ImageStore
from diffusion.protocol.card import Card, differing
from diffusion.protocol.grid import AXES, FOLLOWING, Cell, line_name, order
from diffusion.protocol.packed import pack
from diffusion.protocol.scores import CellScores, ScoresDocument, write_document
from diffusion.system.errors import DiffctlError
from diffusion.system.files import write_text
from diffusion.system.section import explain
from diffusion.system.threads import results

Progress = Callable[[int, int], None]


def evaluate(
    stores: dict[Cell, ImageStore],
    section: EvaluateConfig,
    reference: Path,
    progress: Progress | None = None,
    prepared: Path | None = None,
) -> ScoresDocument:
    """Score the open cells of a grid; returns the document that metrics/scores.json holds.

    `progress` gets (done, total) images. DiffctlError for a cell of another protocol or of another model than
    its neighbours, and for a stale reference; with `prepared` also when the reference was made of other
    images than lie there. All of it is checked before work starts.
    """
    _refuse_mixed_cards(stores)
    extractor = configured_extractor(section)
    opened = open_reference(reference, extractor, section.reference, prepared)
    scorer = Scorer(opened, section.intervals, section.prc_images, extractor.device)
    return score_cells(stores, scorer, extractor, section.batch_size, progress)


def score_cells(
    stores: dict[Cell, ImageStore],
    scorer: Scorer,
    extractor: Extractor,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> ScoresDocument:
    """The scores document of open cells of one size, each image seen by the extractor once."""
    tally = Tally(progress, sum(len(store) for store in stores.values()))
    document = common(scorer, tally.total // len(stores))  # first, since what it computes is for every cell

    def entry(cell: Cell, store: ImageStore) -> CellScores:
        sample = extract(extractor, store.images, batch_size, tally.part())
        try:
            return CellScores(**cell.axes, **score(sample, store, scorer))
        except ValidationError as error:
            raise DiffctlError(explain(error, f"{store.path} cannot be scored", CellScores)) from None

    with side_by_side() as pool:
        entries = results([pool.submit(entry, cell, store) for cell, store in stores.items()], tally.stop)
    cells = {cell.name: made for cell, made in zip(stores, entries, strict=True)}
    return ScoresDocument(**document, best=chosen_best(cells), front=chosen_front(cells), cells=cells)


def score(sample: Features, store: ImageStore, scorer: Scorer) -> dict[str, Any]:
    """The values of a `Scored` of one set of images."""
    card, (scores, errors) = scorer.card(store.meta.get("card", {}), len(sample)), scorer.scored(sample)
    entry: dict[str, Any] = {"scores": scores, "card": card}
    if errors:
        entry["errors"] = {name: pack(parts) for name, parts in errors.items()}
    classes = scorer.classes(sample, store.labels, store.meta.get("classes", []))
    return {**entry, "classes": classes} if classes else entry


def common(scorer: Scorer, num_images: int) -> dict[str, Any]:
    """What a document has once: the extractor, the reference and what real images score, the intervals."""
    floor, real = scorer.floor(num_images), scorer.real(num_images)
    reference = scorer.reference.facts
    if floor is not None and real is not None:
        known = {"num_images": num_images, "extrapolated": floor.extrapolated}
        reference = {**reference, "floor": {**known, **real}}
    document = {"extractor": scorer.spec.name, "reference": reference}
    if scorer.intervals:
        document["intervals"] = {"confidence": CONFIDENCE}
    return document


def write_scores(document: ScoresDocument, scores: Path, curves: Path) -> None:
    """Write the document as JSON and its scores, for plots, as a long CSV: cell, line, axes, metric, value.

    What stands beside a score, its spread and its interval, is in the JSON alone.
    """
    write_document(scores, document)
    cells = sorted(document.cells.items(), key=lambda item: order(item[1].axes))
    axes = [axis for axis in AXES if any(axis in cell.axes for _, cell in cells)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cell", "line", *axes, "metric", "value"])
    for name, cell in cells:
        point = [name, line_name(cell.axes), *(cell.axes.get(axis, "") for axis in axes)]
        scored = sorted((metric, value) for metric, value in cell.scores.items() if not is_aside(metric))
        writer.writerows([*point, metric, value] for metric, value in scored)
    write_text(curves, text.getvalue())


def _refuse_mixed_cards(stores: dict[Cell, ImageStore]) -> None:
    cards: list[Card] = [store.meta["card"] for store in stores.values()]
    if wrong := differing(cards, (*AXES, *FOLLOWING)):
        raise DiffctlError(
            f"the cells of this sweep are not of one protocol, they differ in {', '.join(wrong)}: "
            f"make them with `diffctl stage sample`"
        )
