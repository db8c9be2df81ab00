"""A comparison as a page: one file that needs no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from diffusion.choice.confidence import describe_comparison
from diffusion.images.store import Images
from diffusion.report.theme import render
from tracking.comparison.page_content import curves, differing_params, families, finding, sheets, verdicts
from tracking.comparison.score_rows import Comparison, ScoredRun, ScoreRow, format_spread

TEMPLATE = Path(__file__).with_name("comparison.html.j2")
STYLE = Path(__file__).with_name("comparison.css")


def render_comparison(
    comparison: Comparison, scored: Sequence[ScoredRun] = (), pictures: Sequence[Mapping[str, Images]] = ()
) -> str:
    """The HTML of a comparison: its table, and what was left out with the fields that differ.

    With what was compared, also its curves, what the gate would say and the parameters that differ; with each
    one's `pictures` by cell, equal cells side by side, of several columns the first training of each.
    """
    cells = scored[0].document.cells if scored else {}
    groups = comparison.groups if scored else []
    seen = dict(zip(map(id, scored), pictures, strict=False))
    heads = [group[0] for group in groups] if len(groups) > 1 else scored
    rows = [_row(row) for row in comparison.rows]
    for before, row in zip([{"cell": None}, *rows], rows, strict=False):
        row["first"] = row["cell"] != before["cell"]
    return render(
        TEMPLATE,
        style=Markup(STYLE.read_text(encoding="utf-8")),
        finding=finding(comparison),
        curves=curves(comparison, cells) if cells else [],
        families=families(comparison),
        verdicts=verdicts(groups),
        params=differing_params(groups),
        sheets=sheets(heads, [seen[id(one)] for one in heads]) if pictures else [],
        runs=comparison.labels,
        together=comparison.together,
        rows=rows,
        tied=any(any(row.tied) for row in comparison.rows),
        how=describe_comparison(gap for row in comparison.rows for gap in row.gaps),
        unmarked=any(row.ranks and row.best is None for row in comparison.rows),
        few_images=any(any(row.few_images) for row in comparison.rows),
        intervals=any(any(row.intervals) for row in comparison.rows),
        left_out=comparison.differences,
    )


def _row(row: ScoreRow) -> dict[str, Any]:
    entries = [
        {
            "text": "–" if value is None else f"{value:.4g}",
            "spread": None if deviation is None else f"± {format_spread(deviation)}",
            "interval": None if interval is None else f"{interval.low:.4g} to {interval.high:.4g}",
            "best": value is not None and value == row.best,
            "tied": tied,
            "few_images": few,
        }
        for value, deviation, interval, tied, few in zip(
            row.values, row.deviations, row.intervals, row.tied, row.few_images, strict=True
        )
    ]
    return {"cell": row.cell, "metric": row.metric, "entries": entries}
