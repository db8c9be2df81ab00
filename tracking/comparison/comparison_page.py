"""A comparison as an HTML page: one file that needs no network."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from diffusion.choice.confidence import card_diff, describe_comparison
from diffusion.choice.ranking import decide
from diffusion.choice.selection import best_model_scores
from diffusion.images.pictures import MONTAGE, montage, png_bytes
from diffusion.images.store import Images, open_store
from diffusion.images.store_meta import CellMeta, PreparedMeta
from diffusion.layout import PREPARED, SAMPLES
from diffusion.protocol.card import differing_fields
from diffusion.protocol.grid import cell_order, describe_cell, describe_line
from diffusion.protocol.scores_document import CellScores, ScoresDocument
from diffusion.report.figure_base import as_svg
from diffusion.report.figures import CurvePoint, score_curve
from diffusion.report.sample_pictures import data_uri, real_images
from diffusion.report.theme import render
from tracking.comparison.score_comparison import Comparison, Group, ScoredRun, ScoreRow, format_spread
from tracking.runs.scored_runs import fetch_samples

TEMPLATE = Path(__file__).with_name("comparison.html.j2")
STYLE = Path(__file__).with_name("comparison.css")
Pictures = Mapping[str, Images]  # (H, W, C), by cell
NOISE_FIELDS = {"seed", "classes", "data", "sampling_version"}  # what decides the noise of image i


def load_pictures(one: ScoredRun) -> Pictures:
    """Return the first images of each cell as one picture; cells without are left out.

    Those of a file are in `samples/` next to it, or in the folder above. DiffctlError if they are damaged.
    """
    if one.run is not None:
        return fetch_samples(one.run, one.document)
    found: dict[str, Images] = {}
    for parent in one.path.resolve().parents[:2] if one.path else ():
        for name, cell in one.document.cells.items():
            folder = parent / SAMPLES / name
            if name not in found and folder.is_dir():
                store = open_store(folder, CellMeta)
                sampled = dict(store.meta["card"])
                if not differing_fields([{field: cell.card.get(field) for field in sampled}, sampled]):
                    found[name] = montage(store.images)
    return found


def load_real_picture(document: ScoresDocument, prepared: Path = PREPARED) -> Images | None:
    """Return held-out real images, of all classes in turn, as one picture; None for other data."""
    reference = document.reference
    folder = prepared / str(reference.heldout_split)
    if not folder.is_dir():
        return None
    store = open_store(folder, PreparedMeta)
    if store.digest != reference.heldout_digest:
        return None
    classes = len(store.meta["classes"])
    labels = [index % classes for index in range(MONTAGE)] if classes else None
    return montage(real_images(store, labels, MONTAGE))


def render_comparison(
    comparison: Comparison, pictures: Mapping[str, Pictures] | None = None, real: Images | None = None
) -> str:
    """Return the HTML of a comparison: table, curves, the gate's verdicts, and what is not comparable.

    `pictures` are those of the run with each label. Equal cells are paired; a column of several trainings
    shows its first. `real` has real images.
    """
    rows, groups = comparison.rows, comparison.groups
    heads = [group[0] for group in groups] if len(groups) > 1 else groups[0]
    return render(
        TEMPLATE,
        style=Markup(STYLE.read_text(encoding="utf-8")),
        finding=describe_finding(comparison),
        curves=score_curves(comparison),
        verdicts=gate_verdicts(groups),
        params=differing_params(groups),
        sheets=picture_sheets(heads, pictures or {}),
        real=None if real is None else data_uri(png_bytes(real)),
        runs=comparison.labels,
        seed_groups=comparison.seed_groups,
        rows=[_table_row(row) for row in rows],
        tied=any(any(row.tied) for row in rows),
        how=describe_comparison(gap for row in rows for gap in row.gaps),
        unmarked=any(row.ranks and row.best is None for row in rows),
        few_images=any(any(row.few_images) for row in rows),
        intervals=any(any(row.intervals) for row in rows),
        left_out=comparison.differences,
    )


def _table_row(row: ScoreRow) -> dict[str, Any]:
    columns = zip(row.values, row.deviations, row.intervals, row.tied, row.few_images, strict=True)
    entries = [
        {
            "text": "–" if value is None else f"{value:.4g}",
            "spread": None if deviation is None else f"± {format_spread(deviation)}",
            "interval": None if interval is None else f"{interval.low:.4g} to {interval.high:.4g}",
            "best": value is not None and value == row.best,
            "tied": tied,
            "few_images": few,
        }
        for value, deviation, interval, tied, few in columns
    ]
    return {"cell": row.cell, "metric": row.metric, "entries": entries}


def describe_finding(comparison: Comparison) -> str | None:
    """Return the result of the first score in one sentence; None if no two numbers are comparable."""
    rows = _first_score(comparison)
    if not rows or len(comparison.labels) == 1:
        return None
    wins: Counter[str] = Counter()
    for row in rows:
        others = sum(value is not None for value in row.values) - 1
        worse = sum(gap is not None and gap.is_significant for gap in row.gaps)
        if row.best is not None and worse == others:
            wins[comparison.labels[row.values.index(row.best)]] += 1
    score, undecided = rows[0].metric, len(rows) - wins.total()
    cells = f"{len(rows)} cell{'s' * (len(rows) > 1)}"
    if not wins:
        return f"By {score}, no run is significantly better than all others in any of {cells}."
    best = " and ".join(f"{label} in {count}" for label, count in wins.most_common())
    rest = f"; in {undecided} the best is not significantly better than another" if undecided else ""
    return f"By {score}, of {cells} the best is {best}{rest}."


def _first_score(comparison: Comparison) -> list[ScoreRow]:
    """Return the rows of the first score that have several numbers."""
    rows = comparison.rows
    return [row for row in rows if row.metric == rows[0].metric and sum(row.trainings) > 1]


def score_curves(comparison: Comparison) -> list[dict[str, Any]]:
    """Draw the first score over the steps: a chart per setting with several of them, a line per column.

    A point has a band: a training's interval, or a group's spread with its members.
    """
    points: dict[str, list[CurvePoint]] = {}
    for row in _first_score(comparison):
        cell = comparison.groups[0][0].document.cells[row.cell]
        columns = zip(comparison.labels, row.values, row.deviations, row.intervals, row.each, strict=True)
        for label, value, spread, interval, each in columns:
            if value is not None:
                band = interval if spread is None else (value - spread, value + spread)
                members = () if spread is None else tuple(each)
                point = CurvePoint(cell.steps, label.replace("$", r"\$"), value, band, members)
                points.setdefault(describe_line(cell.axes), []).append(point)
    drawings = []
    for number, (setting, found) in enumerate(points.items()):
        if len({point.x for point in found}) > 1:
            metric = comparison.rows[0].metric
            title = escape(f"{metric} over the number of sampling steps at {setting}, one line per run")
            drawing = Markup(as_svg(score_curve(found, metric), f"curve{number}", title))
            drawings.append({"setting": setting, "drawing": drawing})
    return drawings


def gate_verdicts(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the gate's verdict on each run as candidate, with each run of another column as champion."""
    pairs = [pair for sides in permutations(groups, 2) for pair in product(*sides)]
    # As they are registered: of the best cell's model alone, without the name of its EMA profile.
    cells = {one.label: best_model_scores(one.document).cells for group in groups for one in group}
    return [
        {
            "champion": champion.label,
            "candidate": candidate.label,
            **decide(cells[candidate.label], cells[champion.label], champion.label)._asdict(),
        }
        for champion, candidate in pairs
    ]


def differing_params(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """Return each param on which the runs differ, with the values of each column; a dash for a file."""
    params = [[one.run.data.params if one.run else {} for one in group] for group in groups]
    known = [values for group in params for values in group if values]
    names = sorted({name for values in known for name in values})
    differ = [name for name in names if len({values.get(name) for values in known}) > 1]
    table = []
    for name in differ:
        columns = [[one.get(name, "–") for one in group] for group in params]
        joined = [", ".join(column if len(set(column)) > 1 else column[:1]) for column in columns]
        table.append((name, joined))
    return table


def picture_sheets(scored: Sequence[ScoredRun], pictures: Mapping[str, Pictures]) -> list[dict[str, Any]]:
    """Return the pictures of each cell that the first run and another sampled from the same noise.

    `pictures` are those of the run with each label. The first run's best cell is open on the page.
    """
    first = scored[0].document
    rows = []
    for name, cell in sorted(first.cells.items(), key=lambda item: cell_order(item[1].axes)):
        sides = []
        for number, one in enumerate(scored):
            found, other = pictures.get(one.label, {}), one.document.cells.get(name)
            if name in found and other is not None and not NOISE_FIELDS & card_diff(cell, other).keys():
                sides.append(_picture(one.label, other, f"picture{number}-{name}", found[name]))
        if len(sides) > 1:
            rows.append({"cell": describe_cell(cell.axes), "best": name == first.best.cell, "sides": sides})
    if rows and not any(row["best"] for row in rows):
        rows[0]["best"] = True
    return rows


def _picture(label: str, cell: CellScores, identity: str, picture: Images) -> dict[str, Any]:
    """Return a run's picture of a cell with its id on the page, its size and its score."""
    distance = cell.spec.distance
    return {
        "label": label,
        "id": identity,
        "image": data_uri(png_bytes(picture)),
        "height": picture.shape[0],
        "width": picture.shape[1],
        "score": f"{distance} {cell.scores[distance]:.4g}",
    }
