"""The `evaluate` stage: every cell of the grid against the reference, with its protocol card."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from diffusion.choice.confidence import CONFIDENCE
from diffusion.choice.ranking import is_auxiliary
from diffusion.choice.selection import select_best, select_front
from diffusion.evaluate.beside import Tally, side_by_side
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extract import Features, extract
from diffusion.evaluate.features.extractors import Extractor, configured_extractors
from diffusion.evaluate.features.reference_features import open_references
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.evaluate.statistics_file import configured_statistics
from diffusion.images.store import ImageStore
from diffusion.protocol.card import Card, differing_fields
from diffusion.protocol.float_codec import pack
from diffusion.protocol.grid import DERIVED_FIELDS, Cell, cell_order, describe_line
from diffusion.protocol.scores import CellScores, ScoresDocument, write_scores_document
from diffusion.protocol.settings import AXES
from diffusion.system.errors import DiffctlError
from diffusion.system.files import write_text
from diffusion.system.section import explain
from diffusion.system.threads import gather

Progress = Callable[[int, int], None]
Values = dict[str, Any]
MODEL = "model_sha256"  # the card's field


def evaluate(
    stores: dict[Cell, ImageStore],
    section: EvaluateConfig,
    reference: Path,
    progress: Progress | None = None,
    prepared: Path | None = None,
) -> ScoresDocument:
    """Score the open cells of a grid; returns the document that metrics/scores.json holds.

    `progress` gets (done, total) images, each as often as it is seen. DiffctlError for a cell of another
    protocol or of another training's model than its neighbours, and for a stale reference; with `prepared`
    also when the reference was made of other images than lie there. All of it is checked before work starts.
    """
    _refuse_mixed_cards(stores)
    published = [configured_statistics(space) for space in section.spaces]
    extractors = configured_extractors(section)
    opened = open_references(reference, extractors, section.reference, prepared)
    settings = section.intervals, section.prc_images
    judges = [
        SpaceScorer(extractor, Scorer(one, *settings, extractor.device, section.prc_samples, statistics))
        for extractor, one, statistics in zip(extractors, opened, published, strict=True)
    ]
    document = score_cells(stores, judges, section.batch_size, progress)
    return document.model_copy(update={"protocol": section.protocol}) if section.protocol else document


class SpaceScorer(NamedTuple):
    """A feature space: what sees images, and what scores that against the reference."""

    extractor: Extractor
    scorer: Scorer

    def score(self, store: ImageStore, batch_size: int | None, progress: Callable[[int], None]) -> Values:
        """The values of a `Scored` of one set of images."""
        return score(extract(self.extractor, store.images, batch_size, progress), store, self.scorer)


def score_cells(
    stores: dict[Cell, ImageStore],
    judges: Sequence[SpaceScorer],
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> ScoresDocument:
    """The scores document of open cells of one size, each image seen by each extractor once.

    The first judge's scores are the cells' own, those of further ones stand beside them by their names.
    """
    first, *further = judges
    images = sum(len(store) for store in stores.values())
    tally = Tally(progress, images * len(judges))
    document = _common(judges, images // len(stores))  # first, since what it computes is for every cell
    if training := next(iter(stores.values())).meta.get("training"):
        document["training"] = training

    def entry(cell: Cell, store: ImageStore) -> CellScores:
        values = first.score(store, batch_size, tally.part())
        beside = {judge.scorer.spec.name: judge.score(store, batch_size, tally.part()) for judge in further}
        values |= {"spaces": beside} if beside else {}
        try:
            return CellScores(**cell.axes, **values)
        except ValidationError as error:
            raise DiffctlError(explain(error, f"{store.path} cannot be scored", CellScores)) from None

    with side_by_side() as pool:
        entries = gather([pool.submit(entry, cell, store) for cell, store in stores.items()], tally.stop)
    cells = {cell.name: made for cell, made in zip(stores, entries, strict=True)}
    return ScoresDocument(**document, best=select_best(cells), front=select_front(cells), cells=cells)


def score(sample: Features, store: ImageStore, scorer: Scorer) -> Values:
    """The values of a `Scored` of one set of images."""
    card, (scores, errors) = scorer.card(store.meta.get("card", {}), len(sample)), scorer.scored(sample)
    entry: dict[str, Any] = {"scores": scores, "card": card}
    if errors:
        entry["errors"] = {name: pack(parts) for name, parts in errors.items()}
    classes = scorer.classes(sample, store.labels, store.meta.get("classes", []))
    return {**entry, "classes": classes} if classes else entry


def shared_values(scorer: Scorer, num_images: int) -> Values:
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


def _common(judges: Sequence[SpaceScorer], num_images: int) -> Values:
    """That of the first judge, with the references of the further ones."""
    first, *further = judges
    document = shared_values(first.scorer, num_images)
    beside = {
        judge.scorer.spec.name: shared_values(judge.scorer, num_images)["reference"] for judge in further
    }
    return {**document, "spaces": beside} if beside else document


def write_scores(document: ScoresDocument, scores: Path, curves: Path) -> None:
    """Write the document as JSON and its scores, for plots, as a long CSV: cell, line, axes, metric, value.

    It has the scores of all feature spaces. What stands beside a score, its spread and its interval, is in
    the JSON alone.
    """
    write_scores_document(scores, document)
    cells = sorted(document.cells.items(), key=lambda item: cell_order(item[1].axes))
    axes = [axis for axis in AXES if any(axis in cell.axes for _, cell in cells)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cell", "line", *axes, "metric", "value"])
    for name, cell in cells:
        point = [name, describe_line(cell.axes), *(cell.axes.get(axis, "") for axis in axes)]
        scored = sorted(
            (metric, value) for metric, value in cell.all_scores.items() if not is_auxiliary(metric)
        )
        writer.writerows([*point, metric, value] for metric, value in scored)
    write_text(curves, text.getvalue())


def _refuse_mixed_cards(stores: dict[Cell, ImageStore]) -> None:
    cards: list[Card] = [store.meta["card"] for store in stores.values()]
    if wrong := differing_fields(cards, (*AXES, *DERIVED_FIELDS, MODEL)) or _several_models(stores):
        raise DiffctlError(
            f"the cells of this sweep are not of one protocol, they differ in {', '.join(wrong)}: "
            f"make them with `diffctl stage sample`"
        )


def _several_models(stores: dict[Cell, ImageStore]) -> list[str]:
    """The card's field of a model, where cells are of several trainings, or of several in one average."""
    trained = {store.meta.get("average_of") or store.meta["card"].get(MODEL) for store in stores.values()}
    models = {(cell.ema, store.meta["card"].get(MODEL)) for cell, store in stores.items()}
    averages = {cell.ema for cell in stores}
    return [MODEL] if len(trained) > 1 or len(models) > len(averages) else []
