"""`diffctl run`: the pipeline, supervised."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli.shared.tables import show, table

if TYPE_CHECKING:
    from diffusion.protocol.scores import ScoresDocument


def run(
    push: Annotated[bool, typer.Option("--push", help="Send what was made to the DVC remote.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train and sample from scratch; saved states are discarded.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Go on with the training although its code has changed.")
    ] = False,
) -> None:
    """Bring everything up to date: data, model, samples, scores, report and registry.

    Only what is stale is made. Ctrl-C saves; the same command goes on.
    """
    typer.echo("==> starting; Ctrl-C saves what there is, and the same command goes on")
    from diffusion.layout import REPORT, SCORES
    from diffusion.protocol.scores import read_scores
    from flows.run import run_pipeline

    outcome = run_pipeline(push=push, fresh=fresh, keep=keep)
    typer.echo()
    show_scores(read_scores(SCORES))
    typer.echo(f"\nmodel:  {outcome}")
    typer.echo(f"report: {REPORT / 'index.html'}")
    typer.echo("runs:   `make ui` (or `diffctl ui`) opens them in MLflow")


def show_scores(document: "ScoresDocument") -> None:
    """A row a cell, by its axes; the best one is marked."""
    from diffusion.choice.selection import describe_optimism
    from diffusion.protocol.extractors import extractor_spec
    from diffusion.protocol.grid import cell_order
    from diffusion.protocol.option_values import format_value
    from diffusion.protocol.settings import AXES

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
