"""What a comparison's page shows beside its table: curves, settings that differ, the gate, pictures."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations, product
from typing import Any

from markupsafe import Markup, escape

from diffusion.choice.gate import card_diff, decide
from diffusion.images.pictures import png_bytes
from diffusion.images.store import Images
from diffusion.protocol.grid import cell_order, describe_cell, describe_line
from diffusion.protocol.scores import CellScores
from diffusion.report.figure_base import as_svg
from diffusion.report.figures import CurvePoint, score_curve
from diffusion.report.sample_pictures import data_uri
from tracking.comparison.score_rows import Comparison, Group, ScoredRun, ScoreRow, format_spread

OF_NOISE = ("seed", "classes", "data", "sampling_version")  # what image i is drawn from, in each run alike


def finding(comparison: Comparison) -> str | None:
    """What the first score says in one sentence; None where no two numbers stand side by side."""
    rows = _first_score(comparison)
    if not rows or len(comparison.labels) == 1:
        return None
    told = Counter(comparison.labels[row.values.index(row.best)] for row in rows if _is_told(row))
    score, untold = rows[0].metric, len(rows) - told.total()
    cells = f"{len(rows)} cell{'s' * (len(rows) > 1)}"
    if not told:
        if len(comparison.labels) > 2:
            return f"By {score}, of {cells} the best is told apart from all others in none."
        return f"By {score}, no run is told apart from another in any of {cells}."
    best = " and ".join(f"{label} in {count}" for label, count in told.most_common())
    rest = f"; in {untold} the best is not told apart from another" if untold else ""
    return f"By {score}, of {cells} the best is {best}{rest}."


def _first_score(comparison: Comparison) -> list[ScoreRow]:
    """The rows of the first score in which numbers stand side by side."""
    rows = comparison.rows
    return [row for row in rows if row.metric == rows[0].metric and sum(row.trainings) > 1]


def families(comparison: Comparison) -> list[dict[str, Any]]:
    """Each column by the first score in the cell that has its least: mean, spread, the gap to the best.

    Empty where no column is of several trainings.
    """
    rows = [row for row in _first_score(comparison) if max(row.trainings) > 1]
    if not rows:
        return []
    row = min(rows, key=lambda one: min(value for value in one.values if value is not None))
    columns = zip(comparison.labels, row.values, row.deviations, row.trainings, row.gaps, strict=True)
    return [
        {
            "label": label,
            "score": f"{row.metric} {value:.4g}" + ("" if spread is None else f" ± {format_spread(spread)}"),
            "cell": row.cell,
            "count": count,
            "gap": gap
            and {"value": format_spread(gap.value), "half": format_spread(gap.half), "how": gap.how},
            "told": gap is not None and gap.is_significant,
            "best": value == row.best,
        }
        for label, value, spread, count, gap in columns
        if value is not None
    ]


def _is_told(row: ScoreRow) -> bool:
    """Whether the best of a row is told apart from all others."""
    others = sum(value is not None for value in row.values) - 1
    return row.best is not None and others == sum(gap is not None and gap.is_significant for gap in row.gaps)


def curves(comparison: Comparison, cells: Mapping[str, CellScores]) -> list[dict[str, Any]]:
    """The first score over the steps, a drawing for each setting of the other axes, a line for each label.

    `cells` are the first document's. Empty where no setting was sampled in two numbers of steps.
    """
    points: dict[str, list[CurvePoint]] = {}
    for row in _first_score(comparison):
        cell = cells[row.cell]
        points.setdefault(describe_line(cell.axes), []).extend(_points(row, cell.steps, comparison.labels))
    metric = comparison.rows[0].metric if points else ""
    return [
        {"setting": setting, "drawing": _drawn(f"curve{number}", setting, metric, found)}
        for number, (setting, found) in enumerate(points.items())
        if len({point.steps for point in found}) > 1
    ]


def _points(row: ScoreRow, steps: int, labels: Sequence[str]) -> Iterator[CurvePoint]:
    """With a band of each training's interval; of a group with its spread, and each of its trainings."""
    for number, (label, value) in enumerate(zip(labels, row.values, strict=True)):
        spread, interval = row.deviations[number], row.intervals[number]
        if value is not None:
            band = interval if spread is None else (value - spread, value + spread)
            each = () if spread is None else tuple(row.each[number])
            yield CurvePoint(steps, label.replace("$", r"\$"), value, band, each)


def _drawn(name: str, setting: str, metric: str, points: Sequence[CurvePoint]) -> Markup:
    said = escape(f"{metric} over the number of sampling steps at {setting}, a line for each run")
    return Markup(as_svg(score_curve(points, metric), name, said))


def verdicts(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """What the gate would say of each run, were each one of another column the champion."""
    pairs = [pair for sides in permutations(groups, 2) for pair in product(*sides)]
    return [
        {
            "champion": champion.label,
            "candidate": candidate.label,
            **decide(candidate.document.cells, champion.document.cells, champion.label)._asdict(),
        }
        for champion, candidate in pairs
    ]


def differing_params(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """Each parameter on which the runs differ, with the value of each column, or all that its runs have.

    A file has none and shows a dash.
    """
    params = [[one.run.data.params if one.run else {} for one in group] for group in groups]
    known = [values for group in params for values in group if values]
    names = sorted({name for values in known for name in values})
    differing = [name for name in names if len({values.get(name) for values in known}) > 1]
    return [
        (name, [_joined([one.get(name, "–") for one in group]) for group in params]) for name in differing
    ]


def _joined(values: Sequence[str]) -> str:
    return ", ".join(values if len(set(values)) > 1 else values[:1])


def sheets(scored: Sequence[ScoredRun], pictures: Sequence[Mapping[str, Images]]) -> list[dict[str, Any]]:
    """The cells of which the first run and another have a picture, drawn from the same noise, by image.

    `pictures` are each run's by cell. That which the first run calls its best comes open.
    """
    first = scored[0].document
    rows = []
    for name, cell in sorted(first.cells.items(), key=lambda item: cell_order(item[1].axes)):
        shown = [
            _sheet(one, number, name, seen[name])
            for number, (one, seen) in enumerate(zip(scored, pictures, strict=True))
            if name in seen and _same_noise(cell, one.document.cells.get(name))
        ]
        if len(shown) > 1:
            rows.append({"cell": describe_cell(cell.axes), "best": name == first.best.cell, "sides": shown})
    if rows and not any(row["best"] for row in rows):
        rows[0]["best"] = True
    return rows


def _same_noise(cell: CellScores, other: CellScores | None) -> bool:
    return other is not None and not set(OF_NOISE) & card_diff(cell, other).keys()


def _sheet(one: ScoredRun, number: int, name: str, picture: Images) -> dict[str, Any]:
    """A run's picture of a cell: its id on the page, its size, its scores in a few words."""
    cell = one.document.cells[name]
    distance = cell.spec.distance
    return {
        "label": one.label,
        "id": f"picture{number}-{name}",
        "image": data_uri(png_bytes(picture)),
        "height": picture.shape[0],
        "width": picture.shape[1],
        "score": f"{distance} {cell.scores[distance]:.4g}",
    }
