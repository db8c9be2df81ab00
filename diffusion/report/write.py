"""The stage `report`: one self-contained page, and its figures as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion.config import Config
from diffusion.evaluate.evaluate_config import EvaluateConfig, Space
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import LOSS_CURVE, PREPARED, RUN, SAMPLES, SCORES
from diffusion.protocol.card import differing_fields, neighbour_card
from diffusion.protocol.extractors import extractor_spec
from diffusion.protocol.grid import open_cells
from diffusion.protocol.scores_document import ScoresDocument, read_scores
from diffusion.report.figure_base import as_png
from diffusion.report.figures import read_curve
from diffusion.report.page_content import ReportInputs, draw, page_content
from diffusion.report.theme import render
from diffusion.system.checksums import read_checksummed_json
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import atomic_folder
from diffusion.system.params import changed_fields
from diffusion.train.checkpoint.run_record import TrainingFacts, TrainingIdentity

TEMPLATE = Path(__file__).with_name("page.html.j2")
PICTURES = ("curve", "montage", "loss")


def write_report(inputs: ReportInputs, out: Path) -> Path:
    """Write the folder `out` with the page and its PNGs, reproducible to the byte; return the page's path."""
    drawn = draw(inputs)
    page = render(TEMPLATE, **page_content(inputs, drawn))
    with atomic_folder(out) as folder:
        (folder / "index.html").write_text(page, encoding="utf-8")
        for name in PICTURES:
            (folder / f"{name}.png").write_bytes(as_png(drawn[name]))
    return out / "index.html"


def page_with_seeds(inputs: ReportInputs, others: Sequence[ScoresDocument]) -> str:
    """Return the report's page with the scores of other seeds, which a stage cannot depend on."""
    return render(TEMPLATE, **page_content(inputs, draw(inputs), others))


def read_inputs(config: Config) -> ReportInputs:
    """Read a report's inputs.

    DiffctlError for a missing cell or file, for scores of other samples or settings, and for facts of another
    training.
    """
    document = read_scores(SCORES)
    cells = open_cells(config.sample, config.sweep, SAMPLES)
    again = "score them with `diffctl stage evaluate`"
    if wrong := set(document.cells) ^ {cell.name for cell in cells}:
        raise DiffctlError(f"scores and grid have different cells ({', '.join(sorted(wrong))}): {again}")
    for cell, store in cells.items():
        card, sampled = document.cells[cell.name].card, store.meta["card"]
        if changed := differing_fields([{field: card.get(field) for field in sampled}, sampled]):
            raise DiffctlError(f"{cell.name} has scores of other samples ({', '.join(changed)}): {again}")
    train, test = (open_store(PREPARED / split, PreparedMeta) for split in ("train", "test"))
    real = train if config.evaluate.reference == "train" else test
    if others := _other_settings(config.evaluate, document, len(real)):
        raise UsageError(f"{SCORES} has scores of other settings ({', '.join(others[:3])}): {again}")
    facts = _training_facts(next(iter(cells.values())).meta)
    return ReportInputs(config, document, cells, train, test, read_curve(LOSS_CURVE), facts)


def _other_settings(section: EvaluateConfig, document: ScoresDocument, count: int) -> list[str]:
    """Return the settings of the scores that differ from the section; `count` is that of the real images."""
    one, real = next(iter(document.cells.values())), min(count, section.reference_images or count)
    wanted: dict[str, Any] = {"reference_split": section.reference, "reference_count": real}
    wanted |= neighbour_card(one.num_images, real, section.limits)
    known = {name: one.card.get(name, value) for name, value in wanted.items()}  # old cards have fewer fields
    cards = {document.extractor: one.card, **{name: space.card for name, space in one.spaces.items()}}
    wanted["extractor"] = ", ".join(space.extractor for space in section.spaces)
    known["extractor"] = ", ".join(cards)
    for space in section.spaces:
        files = _files(space)
        card = cards.get(space.extractor, {})
        wanted |= {f"{space.extractor}.{name}": digest for name, digest in files.items()}
        known |= {f"{space.extractor}.{name}": card.get(name, files[name]) for name in files}
    return changed_fields(known, wanted)


def _files(space: Space) -> dict[str, str]:
    """Return the digests of a feature space's files, except bundled ones, by their names in cards."""
    published = extractor_spec(space.extractor).weights
    weights = space.weights_sha256 or (published.sha256 if published.url else None)
    statistics = None if space.statistics is None else space.statistics.sha256
    named = {"weights_sha256": weights, "statistics_sha256": statistics}
    return {name: digest for name, digest in named.items() if digest is not None}


def _training_facts(sampled: Mapping[str, Any]) -> TrainingFacts | None:
    """Return the facts of the training; UsageError if it is not the one of a cell with this `meta`."""
    if not RUN.exists():
        return None
    identity = read_checksummed_json(RUN, TrainingIdentity)
    trained = sampled.get("average_of") or sampled["card"].get("model_sha256")
    if identity.model_sha256 not in (None, trained):
        raise UsageError(
            f"{RUN} is of the model {identity.model_sha256[:16]}, and {SAMPLES} of {str(trained)[:16]}: "
            "make both with `diffctl run`"
        )
    return identity.facts
