"""Scores as Markdown, for the pages of MLflow and Prefect."""

from collections.abc import Iterable, Sequence

from diffusion.protocol.scores import ScoresDocument


def score_names(document: ScoresDocument) -> list[str]:
    """The scores that such a table has columns of: those that every cell has."""
    spec, cells = document.spec, document.cells.values()
    names = [spec.distance, "excess", spec.kernel_distance]
    return [name for name in names if all(name in cell.scores for cell in cells)]


def score_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of a cell's name and these scores, which are right-aligned; `rows` are texts."""
    lines = [["cell", *names], ["---", *["---:"] * len(names)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
