"""Tables of scores: of ad-hoc images, and of the cells of a sweep."""

from collections.abc import Iterator
from typing import Any

import typer

from cli.shared.tables import show, table
from diffusion.choice.selection import describe_disagreement, describe_optimism
from diffusion.protocol.card import SHARES
from diffusion.protocol.extractors import extractor_spec
from diffusion.protocol.grid import cell_order
from diffusion.protocol.options import format_value
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.protocol.settings import AXES

TWO_SIDED = 1.96  # standard deviations of a 95 % interval


def show_scores(document: dict[str, Any]) -> None:
    """Print a row for each score, with its interval and the score of held-out real images."""
    spaces = list(_spaces(document))
    columns = ["score", f"{document['images']['count']:,} images"]
    intervals = document.get("intervals")
    if intervals:
        columns.append(f"{intervals['confidence']:.0%} interval")
    floors = [floor for _, one in spaces if (floor := one["reference"].get("floor"))]
    if floors:
        columns.append("real, held out" + (" (extrapolated)" if floors[0]["extrapolated"] else ""))
    made = table(*columns)
    for name, one in spaces:
        for row in _rows(name, one, named=one is not document):
            cells = [row[0], row[1], *([row[2]] if intervals else []), *([row[3]] if floors else [])]
            made.add_row(*cells)
    show(made)
    for name, one in spaces:
        _print_reference(name, one)


def _spaces(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the extractors' names and their scores, the primary one first."""
    yield document["extractor"], document
    yield from document.get("spaces", {}).items()


def _rows(extractor: str, one: dict[str, Any], named: bool) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, value, interval and the value of held-out images of each score."""
    spec, scores, floor = extractor_spec(extractor), one["scores"], one["reference"].get("floor", {})
    shown = [spec.distance, "excess", spec.limit, spec.kernel_distance, spec.gaussian_distance or ""]
    for name in [*shown, *map(spec.named, SHARES), "memorisation", *spec.results]:
        if name in scores:
            label = spec.qualified(name) if named else name
            real = f"{floor[name]:.5g}" if name in floor else ""
            yield label, f"{scores[name]:.5g}", _interval(scores, name), real


def _interval(scores: dict[str, float], name: str) -> str:
    if name == "memorisation":
        return f"by chance 0 ± {TWO_SIDED * scores['memorisation_std']:.2g}"
    ends = [scores.get(f"{name}_{end}") for end in ("low", "high")]
    return "" if None in ends else f"{ends[0]:.5g} to {ends[1]:.5g}"


def _print_reference(extractor: str, one: dict[str, Any]) -> None:
    """Print the reference, and the scores that it does not allow."""
    reference = one["reference"]
    if "sha256" not in reference:
        print(
            f"against {reference['reference_count']:,} images of {reference['name']} "
            f"({reference['reference_split']}), extractor {extractor}"
        )
        return
    images = f" and its {reference['images']:,} images" if "images" in reference else ""
    typer.echo(
        f"against the statistics {reference['name']} (SHA-256 {reference['sha256'][:16]}…, source "
        f"{reference['source']}){images}, extractor {extractor}"
    )
    left = one["not_scored"]
    typer.echo(f"no {', '.join(left['scores'])}: {left['why']}")


def show_sweep_scores(document: ScoresDocument) -> None:
    """Print a row for each cell, the best one marked."""
    spec, chosen = document.spec, document.best
    cells = sorted(document.cells.values(), key=lambda cell: cell_order(cell.axes))
    winner = document.cells[chosen.cell]
    names = [spec.distance, "excess", spec.kernel_distance, *spec.results]
    for seen in map(extractor_spec, document.spaces):
        names += [*seen.distances, *seen.results]
    names = [name for name in names if all(name in cell.all_scores for cell in cells)]
    axes = [axis for axis in AXES if any(axis in cell.axes for cell in cells)]
    listed = table(*(axis.upper() for axis in axes), *names, "")
    for cell in cells:
        values = [f"{cell.all_scores[name]:.4g}" for name in names]
        listed.add_row(
            *(format_value(cell.axes.get(axis, "")) for axis in axes), *values, "*" if cell is winner else ""
        )
    show(listed)
    reference, extractors = document.reference, ", ".join([spec.name, *document.spaces])
    typer.echo(
        f"{cells[0].num_images:,} images a cell against {reference.reference_count:,} of "
        f"{reference.name} ({reference.reference_split}), extractor {extractors}; "
        f"* the best by {chosen.metric}"
    )
    if aside := describe_optimism(chosen):
        typer.echo(f"its {chosen.metric} is {aside}")
    if other := describe_disagreement(document):
        typer.echo(other)
