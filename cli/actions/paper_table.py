"""Scores in a table with those of a paper."""

import json
from collections.abc import Sequence
from typing import Any

import typer

from cli.shared.tables import show, table
from diffusion.layout import SCORES
from diffusion.papers.paper import (
    FigureComparison,
    Paper,
    SpaceScores,
    compare_cells,
    compare_scores,
    shared_differences,
)
from diffusion.protocol.scores_document import read_scores


def paper_json(paper: Paper, document: dict[str, Any]) -> dict[str, Any]:
    """Return the comparison of the paper with a scores document as JSON values."""
    return _as_json(paper, _compare(paper, document))


def show_comparison(paper: Paper, document: dict[str, Any]) -> None:
    """Print the comparison of the paper with a scores document."""
    typer.echo()
    _show(paper, _compare(paper, document))


def _compare(paper: Paper, document: dict[str, Any]) -> list[FigureComparison]:
    spaces = [document, *document.get("spaces", {}).values()]
    return compare_scores(paper, [SpaceScores(one["card"], one["scores"]) for one in spaces])


def show_sweep(paper: Paper, as_json: bool) -> None:
    """Print the paper's scores, each with the cell of metrics/scores.json of the nearest protocol."""
    found = compare_cells(paper, read_scores(SCORES).cells)
    if as_json:
        typer.echo(json.dumps(_as_json(paper, found), indent=2))
    else:
        _show(paper, found)


def _as_json(paper: Paper, found: Sequence[FigureComparison]) -> dict[str, Any]:
    about = {"title": paper.title, "source": paper.source, "note": paper.note}
    return {**about, "figures": [one.as_json() for one in found]}


def _show(paper: Paper, found: Sequence[FigureComparison]) -> None:
    """Print a row for each score; differences that all rows share are printed once below."""
    alike = shared_differences([one.differences for one in found])
    cells = any(one.cell for one in found)
    made = table("published", "where", "score", "value", "here", *(["cell"] if cells else []), "comparable")
    for one in found:
        own = ", ".join(str(departure) for departure in one.differences if departure not in alike)
        value = "" if one.here is None else f"{one.here:.5g}"
        verdict = "yes" if one.is_comparable else f"no: {own}" if own else "no"
        row = [one.figure.name, one.figure.where, one.figure.metric, f"{one.figure.value:g}", value]
        made.add_row(*row, *([one.cell or ""] if cells else []), verdict)
    show(made)
    if alike:
        typer.echo(f"none is comparable: the paper has {', '.join(map(str, alike))}")
    typer.echo(f"{paper.title}, {paper.source}" + (f": {paper.note}" if paper.note else ""))
