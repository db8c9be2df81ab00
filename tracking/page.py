"""A comparison as a page: one file that needs no network."""

from pathlib import Path
from typing import Any

from diffusion.choice.certainty import how_told
from diffusion.report.render import render
from tracking.compare import Comparison, Row

TEMPLATE = Path(__file__).with_name("comparison.html.j2")


def comparison_page(comparison: Comparison) -> str:
    """The HTML of a comparison: its table, and what was left out with the fields that differ."""
    rows = [_row(row) for row in comparison.rows]
    for before, row in zip([{"cell": None}, *rows], rows, strict=False):
        row["first"] = row["cell"] != before["cell"]
    return render(
        TEMPLATE,
        runs=comparison.labels,
        rows=rows,
        tied=any(any(row.tied) for row in comparison.rows),
        how=how_told(gap for row in comparison.rows for gap in row.gaps),
        unmarked=any(row.ranks and row.best is None for row in comparison.rows),
        few_images=any(any(row.few_images) for row in comparison.rows),
        intervals=any(any(row.intervals) for row in comparison.rows),
        left_out=comparison.differences,
    )


def _row(row: Row) -> dict[str, Any]:
    entries = [
        {
            "text": "–" if value is None else f"{value:.4g}",
            "interval": None if interval is None else f"{interval.low:.3g} to {interval.high:.3g}",
            "best": value is not None and value == row.best,
            "tied": tied,
            "few_images": few,
        }
        for value, interval, tied, few in zip(
            row.values, row.intervals, row.tied, row.few_images, strict=True
        )
    ]
    return {"cell": row.cell, "metric": row.metric, "entries": entries}
