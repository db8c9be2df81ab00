"""The stage `evaluate`: score every cell of the grid against the reference, with its protocol card."""

import csv
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from threadpoolctl import threadpool_limits

from diffusion.choice.confidence import CONFIDENCE, noise_differences
from diffusion.choice.ranking import is_auxiliary
from diffusion.choice.selection import select
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extractors import (
    Extractor,
    Features,
    Progress,
    ProgressCounter,
    exact_float32,
    extract,
    space_extractor,
)
from diffusion.evaluate.features.reference_features import open_references
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.evaluate.statistics_file import configured_statistics
from diffusion.images.store import ImageStore
from diffusion.protocol.card import Card
from diffusion.protocol.grid import Cell, cell_order, describe_line
from diffusion.protocol.option_tables import AXES
from diffusion.protocol.scores_document import CellScores, ScoresDocument, pack, write_scores_document
from diffusion.system.errors import DiffctlError
from diffusion.system.files import write_text
from diffusion.system.section import explain
from diffusion.system.threads import gather, half_of_the_cores, two_threads
from diffusion.version import VERSION

Values = dict[str, Any]
MODEL = "model_sha256"  # field of the card


def evaluate(
    stores: dict[Cell, ImageStore],
    section: EvaluateConfig,
    reference: Path,
    progress: Progress | None = None,
    prepared: Path | None = None,
) -> ScoresDocument:
    """Score the cells of a grid and return the document of metrics/scores.json.

    `progress` receives (done, total) images, each counted once per extractor. DiffctlError before any work
    for cells of different protocols or trainings, and for a reference that is stale, as `open_reference`.
    """
    _check_cards(stores)
    published = [configured_statistics(space) for space in section.spaces]
    extractors = [space_extractor(space) for space in section.spaces]
    opened = open_references(reference, extractors, section.reference, prepared, section.reference_images)
    scorers = [
        (extractor, Scorer(one, section, extractor.device, statistics))
        for extractor, one, statistics in zip(extractors, opened, published, strict=True)
    ]
    document = score_cells(stores, scorers, section.batch_size, progress)
    return document.model_copy(update={"protocol": section.protocol}) if section.protocol else document


def score_cells(
    stores: dict[Cell, ImageStore],
    scorers: Sequence[tuple[Extractor, Scorer]],
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> ScoresDocument:
    """Score cells of equal size, two at a time. Each extractor processes each image once.

    The first scorer gives the cells' own scores; those of the others are in `spaces` by name.
    """
    first, *further = [scorer for _, scorer in scorers]
    one = next(iter(stores.values()))
    counter = ProgressCounter(progress, len(one) * len(stores) * len(scorers))
    shared = shared_values(first, len(one))  # computes what all cells need
    references = {space.spec.name: shared_values(space, len(one))["reference"] for space in further}
    shared |= {"spaces": references} if references else {}
    if training := one.meta.get("training"):
        shared["training"] = training

    def entry(cell: Cell, store: ImageStore) -> CellScores:
        values, *others = [
            score(extract(extractor, store.images, batch_size, counter.add), store, scorer)
            for extractor, scorer in scorers
        ]
        if others:
            values["spaces"] = dict(zip(references, others, strict=True))
        try:
            return CellScores(**cell.axes, **values)
        except ValidationError as error:
            raise DiffctlError(explain(error, f"{store.path} cannot be scored", CellScores)) from None

    with two_scoring_threads() as pool:
        futures = [pool.submit(entry, cell, store) for cell, store in stores.items()]
        entries = gather(futures, counter.stop)
    return select({cell.name: made for cell, made in zip(stores, entries, strict=True)}, **shared)


@contextmanager
def two_scoring_threads() -> Iterator[Executor]:
    """Yield two threads with half of the cores for torch and NumPy: much of a score keeps one core busy."""
    with (
        exact_float32(),  # process-wide: no thread may reset it while another one extracts
        threadpool_limits(half_of_the_cores(), user_api="blas"),
        two_threads() as pool,
    ):
        yield pool


def score(sample: Features, store: ImageStore, scorer: Scorer) -> Values:
    """Return the values of `ImageScores` for one set of images."""
    card = scorer.card(store.meta.get("card", {}), len(sample))
    scores, errors = scorer.scored(sample, enlarged="real_sha256" in card)
    entry: Values = {"scores": scores, "card": card}
    if errors:
        entry["errors"] = {name: pack(parts) for name, parts in errors.items()}
    classes = scorer.classes(sample, store.labels, store.meta.get("classes", []))
    return {**entry, "classes": classes} if classes else entry


def shared_values(scorer: Scorer, num_images: int) -> Values:
    """Return a document's values for all cells: version, extractor, reference with its floor, confidence."""
    reference, floor = scorer.reference.facts, scorer.real(num_images)
    document: Values = {
        "diffctl": VERSION,
        "extractor": scorer.spec.name,
        "reference": reference if floor is None else {**reference, "floor": floor},
    }
    if scorer.intervals:
        document["intervals"] = {"confidence": CONFIDENCE}
    return document


def write_scores(document: ScoresDocument, scores: Path, curves: Path) -> None:
    """Write the document as JSON, and its scores as a long CSV for plots.

    The CSV has the columns cell, line, axes, metric and value, for all feature spaces. Deviations and
    intervals are only in the JSON file.
    """
    write_scores_document(scores, document)
    cells = sorted(document.cells.items(), key=lambda item: cell_order(item[1].axes))
    axes = [axis for axis in AXES if any(axis in cell.axes for _, cell in cells)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cell", "line", *axes, "metric", "value"])
    for name, cell in cells:
        point = [name, describe_line(cell.axes), *(cell.axes.get(axis, "") for axis in axes)]
        for metric, value in sorted(cell.all_scores.items()):
            if not is_auxiliary(metric):
                writer.writerow([*point, metric, value])
    write_text(curves, text.getvalue())


def _check_cards(stores: dict[Cell, ImageStore]) -> None:
    """Raise a DiffctlError unless all cells are of one protocol and training, a model per EMA profile."""
    cards: list[Card] = [store.meta["card"] for store in stores.values()]
    wrong = list(noise_differences(cards))
    trained = {store.meta.get("average_of") or store.meta["card"].get(MODEL) for store in stores.values()}
    models = {(cell.ema, store.meta["card"].get(MODEL)) for cell, store in stores.items()}
    if len(trained) > 1 or len(models) > len({cell.ema for cell in stores}):
        wrong.append(MODEL)
    if wrong:
        found = f"the cells of this sweep are not of one protocol, they differ in {', '.join(wrong)}"
        raise DiffctlError(f"{found}: make them with `diffctl stage sample`")
