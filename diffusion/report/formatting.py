"""Texts of reports: scores with their digits and intervals, a model in one sentence, Markdown. No torch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from diffusion.choice.confidence import gap, interval_of
from diffusion.images.image_size import format_size
from diffusion.protocol.card import SHARES
from diffusion.protocol.extractors import ExtractorSpec
from diffusion.protocol.scores_document import CellScores, ImageScores, ScoresDocument
from diffusion.system.section import brief

if TYPE_CHECKING:
    from diffusion.model.model_file import Artefact

MAX_NAME_LENGTH = 200


def short_names(spec: ExtractorSpec) -> dict[str, str]:
    """Return the page's names of distance, kernel distance and Inception score."""
    return {
        "distance": {"fid": "FID", "sfid": "sFID"}.get(spec.distance, "FD"),
        "kernel": "KID" if spec.is_inception else "KD",
        "score": "IS",
    }


def score_name(spec: ExtractorSpec, metric: str) -> str:
    """Return the page's name of a score that selects cells."""
    names = short_names(spec)
    return {spec.kernel_distance: names["kernel"], spec.distance: names["distance"]}.get(metric, metric)


def real_label(floor: Mapping[str, float]) -> str:
    """Return the label of the scores of held-out real images."""
    return "real, held out" + " (extrapolated)" * bool(floor.get("extrapolated"))


def decimals(values: Sequence[float]) -> int:
    """Return the decimals that give the largest value about four significant digits, at most 5."""
    largest = max((abs(value) for value in values), default=0.0)
    return 1 if largest == 0 else max(0, min(5, 3 - math.floor(math.log10(largest))))


def places_of(metric: str, values: Sequence[float]) -> int:
    """Return the decimals for a score: two for a fraction, else as `decimals`."""
    return 2 if metric.startswith(SHARES) else decimals(values)


def number(value: float, places: int) -> str:
    """Format with `places` decimals and a real minus sign; no minus for a rounded zero."""
    text = f"{value:,.{places}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", "−")


def column_places(document: ScoresDocument, column: str) -> int:
    """Return the decimals for a score by its largest value in any cell."""
    cells = document.cells.values()
    return places_of(column, [cell.scores[column] for cell in cells if column in cell.scores])


def half_width(cell: ImageScores, metric: str, places: int) -> str | None:
    """Format half of a score's confidence interval; None if it has none."""
    ends = interval_of(cell, metric)
    return None if ends is None else number((ends.high - ends.low) / 2, places)


def is_tied(cell: CellScores, other: CellScores, metric: str) -> bool:
    """Return whether the gap of two cells is within its confidence interval."""
    found = gap(cell, other, metric)
    return found is not None and not found.is_significant


def escape_markdown(text: str) -> str:
    """Return a user's text without Markdown markup."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!" else c for c in brief(text, str, MAX_NAME_LENGTH))


def describe_model(artefact: "Artefact") -> str:
    """Return data, shape, network, steps and process of a model as Markdown."""
    spec, process, width = artefact.network, artefact.process, artefact.ema_sigma_rel
    classes = f"{spec.num_classes} classes" if spec.num_classes else "no classes"
    profile = f", EMA profile of σ_rel = {width:g}" if width else ""
    return (
        f"**{escape_markdown(artefact.data.name)}**, {format_size(spec.pixel_shape)}, "
        f"{classes}: network {escape_markdown(spec.name)}, {artefact.step:,} steps of training, process "
        f"{escape_markdown(process.schedule)}, {escape_markdown(process.prediction)}{profile}."
    )


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], gap: str = "") -> str:
    """Return a table of texts; all columns but the first are right-aligned and begin with `gap`."""
    lines = [[first, *(f"{gap}{text}" for text in others)] for first, *others in (head, *rows)]
    lines.insert(1, ["---", *["---:"] * (len(head) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
