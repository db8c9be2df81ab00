"""The scores of this training next to those of other seeds."""

import json
from collections.abc import Sequence
from pathlib import Path

import typer

from cli.commands.scores import Seeds
from cli.shared.tables import show, table
from diffusion.config import load
from diffusion.layout import LOSS_CURVE, PREPARED, RUN, SAMPLES, SCORES
from diffusion.protocol.scores_document import ScoresDocument, read_scores
from diffusion.report.seed_comparison import SeedComparison, compare_seeds, excluded_seeds
from diffusion.report.write import page_with_seeds, read_inputs
from diffusion.system.output_paths import check_output, write_output_text
from tracking.comparison.score_comparison import format_spread
from tracking.comparison.seed_groups import other_seeds


def show_seeds(options: Seeds) -> None:
    """Carry out `diffctl seeds`."""
    if options.html is not None:
        check_output(options.html, "--html")
    document = read_scores(SCORES)
    others = other_seeds(document)
    found, aside = compare_seeds(document, others), excluded_seeds(document, others)
    if options.html is not None:
        _write_page(options.html, others)
    if options.as_json:
        typer.echo(json.dumps(_values(document, found, aside), indent=2))
        return
    _show(document, found)
    for seed, fields in sorted(aside.items()):
        why = f"the cards differ in {', '.join(fields)}" if fields else "its sweep lacks that cell"
        typer.echo(f"seed {seed} is left out: {why}")
    if options.html is not None:
        typer.echo(f"page: {options.html}")


def _write_page(html: Path, others: Sequence[ScoresDocument]) -> None:
    inputs = read_inputs(load(), SAMPLES, SCORES, PREPARED, LOSS_CURVE, RUN)
    write_output_text(html, page_with_seeds(inputs, others))


def _values(
    document: ScoresDocument, found: Sequence[SeedComparison], aside: dict[int, list[str]]
) -> dict[str, object]:
    return {
        "cell": document.best.cell,
        "seed": document.training.seed if document.training else None,
        "scores": [one.as_json() for one in found],
        "left_out": {str(seed): fields for seed, fields in aside.items()},
    }


def _show(document: ScoresDocument, found: Sequence[SeedComparison]) -> None:
    """Print a row for each score of the best cell."""
    if not found:
        typer.echo(
            "MLflow has no scores of another seed of this setting: change train.seed, then `diffctl run`"
        )
        return
    listed = table("SCORE", f"SEED {found[0].own}", "MEAN", "PLACE", "OTHER SEEDS")
    for one in found:
        own = f"{one.values[one.own]:.4g}{' ≠' * one.is_apart}"
        place = f"{one.place} of {len(one.values)}" if one.place else "-"
        others = ", ".join(f"{seed}: {value:.4g}" for seed, value in one.values.items() if seed != one.own)
        listed.add_row(one.metric, own, f"{one.mean:.4g} ± {format_spread(one.deviation)}", place, others)
    show(listed)
    typer.echo(f"at {document.best.cell}, the best cell here; ± is the standard deviation between seeds")
    if any(one.is_apart for one in found):
        typer.echo("≠ further from the mean of the others than their spread explains")
