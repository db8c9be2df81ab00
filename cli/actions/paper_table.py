"""What stands on a terminal of scores against what others have published."""

import json
from collections.abc import Sequence
from typing import Any

import typer

from cli.shared.tables import show, table
from diffusion.layout import SCORES
from diffusion.papers.paper import Paper
from diffusion.papers.paper_comparison import (
    FigureComparison,
    SpaceScores,
    compare_cells,
    compare_scores,
    shared_differences,
)
from diffusion.protocol.scores_document import read_scores


def paper_json(paper: Paper, document: dict[str, Any]) -> dict[str, Any]:
    """The paper's figures beside the scores of a document, for a script."""
    return _as_json(paper, _beside(paper, document))


def show_beside(paper: Paper, document: dict[str, Any]) -> None:
    """The paper's figures beside the scores of a document."""
    typer.echo()
    _show(paper, _beside(paper, document))


def _beside(paper: Paper, document: dict[str, Any]) -> list[FigureComparison]:
    spaces = [document, *document.get("spaces", {}).values()]
    return compare_scores(paper, [SpaceScores(one["card"], one["scores"]) for one in spaces])


def show_sweep(paper: Paper, as_json: bool) -> None:
    """The paper's figures, each beside the cell of metrics/scores.json whose protocol departs least."""
    found = compare_cells(paper, read_scores(SCORES).cells)
    if as_json:
        typer.echo(json.dumps(_as_json(paper, found), indent=2))
    else:
        _show(paper, found)


def _as_json(paper: Paper, found: Sequence[FigureComparison]) -> dict[str, Any]:
    about = {"title": paper.title, "source": paper.source, "note": paper.note}
    return {**about, "figures": [one.as_json() for one in found]}


def _show(paper: Paper, found: Sequence[FigureComparison]) -> None:
    """A row a figure; what keeps all of them from being comparable is said once, below."""
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
