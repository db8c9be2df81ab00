"""Tables of scores: of ad-hoc images, and of the cells of a sweep."""

from collections.abc import Iterator
from typing import Any

import typer

from cli.shared.console import print_table
from diffusion.choice.selection import describe_disagreement, describe_optimism
from diffusion.protocol.card import SHARES
from diffusion.protocol.extractors import extractor_spec
from diffusion.protocol.grid import cell_order
from diffusion.protocol.option_tables import AXES
from diffusion.protocol.options import format_value
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.report.formatting import real_label

TWO_SIDED = 1.96  # standard deviations of a 95 % interval


def show_scores(document: dict[str, Any]) -> None:
    """Print a row for each score, with its interval and the score of held-out real images."""
    spaces = {document["extractor"]: document, **document.get("spaces", {})}
    intervals = document.get("intervals")
    interval = f"{intervals['confidence']:.0%} interval" if intervals else ""
    floors = [floor for one in spaces.values() if (floor := one["reference"].get("floor"))]
    real = real_label(floors[0]) if floors else ""
    rows = (row for name, one in spaces.items() for row in _rows(name, one, named=one is not document))
    print_table(("score", f"{document['images']['count']:,} images", interval, real), rows)
    for name, one in spaces.items():
        _print_reference(name, one)


def _rows(extractor: str, one: dict[str, Any], named: bool) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, value, interval and the value of held-out images of each score."""
    spec, scores, floor = extractor_spec(extractor), one["scores"], one["reference"].get("floor", {})
    shown = [spec.distance, "excess", spec.limit, spec.kernel_distance, spec.gaussian_distance or ""]
    for name in [*shown, *map(spec.named, (*SHARES, "fld")), "memorisation", *spec.results]:
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
        split, count = reference["reference_split"], reference["reference_count"]
        typer.echo(f"against {count:,} images of {reference['name']} ({split}), extractor {extractor}")
        return
    images = f" and its {reference['images']:,} images" if "images" in reference else ""
    source = f"SHA-256 {reference['sha256'][:16]}…, source {reference['source']}"
    typer.echo(f"against the statistics {reference['name']} ({source}){images}, extractor {extractor}")
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
    rows = []
    for cell in cells:
        settings = [format_value(cell.axes.get(axis, "")) for axis in axes]
        values = [f"{cell.all_scores[name]:.4g}" for name in names]
        rows.append((*settings, *values, "*" if cell is winner else ""))
    print_table((*(axis.upper() for axis in axes), *names, ""), rows)
    real, extractors = document.reference, ", ".join([spec.name, *document.spaces])
    against = f"{real.reference_count:,} of {real.name} ({real.reference_split}), extractor {extractors}"
    typer.echo(f"{cells[0].num_images:,} images a cell against {against}; * the best by {chosen.metric}")
    if aside := describe_optimism(chosen):
        typer.echo(f"its {chosen.metric} is {aside}")
    if other := describe_disagreement(document):
        typer.echo(other)
