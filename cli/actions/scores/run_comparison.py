"""The scores of several runs in one table, and those of this training next to other seeds."""

from collections.abc import Sequence
from functools import partial

import typer

from cli.commands.scores import Compare, Seeds
from cli.shared.console import print_table
from cli.stages.context import preflight
from diffusion.choice.confidence import describe_comparison
from diffusion.config import load
from diffusion.layout import SCORES
from diffusion.protocol.card import describe_difference
from diffusion.protocol.scores_document import ScoresDocument, read_scores
from diffusion.report.comparisons import SeedComparison, compare_seeds, excluded_seeds
from diffusion.report.write import page_with_seeds, read_inputs
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.output_paths import write_output_text
from flows.prefect_server.local_servers import is_mlflow_healthy, mlflow_page
from tracking.comparison.comparison_page import load_pictures, load_real_picture, render_comparison
from tracking.comparison.score_comparison import (
    Comparison,
    ScoredRun,
    ScoreRow,
    compare,
    format_spread,
    load_scored,
)
from tracking.mlflow_pages import LOCAL, comparison_link
from tracking.runs.scored_runs import other_seeds
from tracking.store import tracking_uri


def compare_runs(options: Compare) -> None:
    scored = [load_scored(name) for name in options.names]
    link = _mlflow_link(scored) if options.open_page else None
    result = compare(scored, options.metric or [], apart=options.per_seed)
    if options.html is not None:
        pictures = {one.label: load_pictures(one) for one in scored}
        real = load_real_picture(scored[0].document)
        write_output_text(options.html, render_comparison(result, pictures, real))
    options.answer(result.as_json(), partial(_show_comparison, result))
    if options.html is not None and not options.as_json:
        typer.echo(f"page: {options.html}")
    if link is not None:
        typer.echo(f"MLflow: {link}", err=options.as_json)
        typer.launch(link)
    if not result.rows:
        raise UsageError(f"these scores cannot be compared: {_differences(result) or 'no cell in common'}")


def _mlflow_link(scored: Sequence[ScoredRun]) -> str:
    """Return the page on which MLflow compares these runs; UsageError if one is a file."""
    runs = [one.run.info for one in scored if one.run is not None]
    if len(runs) < len(scored):
        raise UsageError("--open shows runs of MLflow: give ids or names of runs, no files")
    if page := mlflow_page(tracking_uri()) or (LOCAL if is_mlflow_healthy(LOCAL) else None):
        return comparison_link(page, [run.experiment_id for run in runs], [run.run_id for run in runs])
    raise DiffctlError(f"no MLflow server at {LOCAL} shows these runs: `diffctl ui` starts one")


def _show_comparison(result: Comparison) -> None:
    """Print the table with the best number of each row marked, then the omissions and their reasons."""
    if not result.rows:
        return  # an error has the reasons
    rows = ((row.cell, row.metric, *_numbers(row)) for row in result.rows)
    print_table(("CELL", "SCORE", *result.labels), rows)
    for label, members in result.seed_groups.items():
        typer.echo(f"{label}: mean ± standard deviation of {', '.join(members)}, of other seeds")
    if any(row.best is not None for row in result.rows):
        typer.echo("< the best of its row")
    if any(any(row.tied) for row in result.rows):
        typer.echo("≈ not significantly worse: the gap is within its confidence interval")
    if how := describe_comparison(gap for row in result.rows for gap in row.gaps):
        typer.echo(f"gaps to the best are {how}")
    if any(row.ranks and row.best is None for row in result.rows):
        typer.echo("no best is marked where a number has no confidence interval: it may be so by chance")
    if any(any(row.few_images) for row in result.rows):
        typer.echo("* of fewer images than there are features: a limit that is not to be trusted")
    if result.differences:
        typer.echo(f"left out: {_differences(result)}")


def _numbers(row: ScoreRow) -> list[str]:
    """Return each value with its mark; for a group with its standard deviation."""
    marked = []
    columns = zip(row.values, row.deviations, row.tied, row.few_images, strict=True)
    for value, deviation, tied, few in columns:
        mark = " <" if value == row.best else " ≈" if tied else " *" if few else ""
        spread = "" if deviation is None else f" ± {format_spread(deviation)}"
        marked.append("-" if value is None else f"{value:.5g}{spread}{mark}")
    return marked


def _differences(result: Comparison) -> str:
    return "; ".join(
        f"{len(one.cells)} cell(s) of {one.label}: the cards differ in {describe_difference(one.fields)}"
        for one in result.differences
    )


def show_seeds(options: Seeds) -> None:
    document = read_scores(SCORES)
    others = other_seeds(document)
    found, aside = compare_seeds(document, others), excluded_seeds(document, others)
    if options.html is not None:
        inputs = read_inputs(load())
        preflight("report")
        write_output_text(options.html, page_with_seeds(inputs, others))
    values = {
        "cell": document.best.cell,
        "seed": document.training.seed if document.training else None,
        "scores": [one.as_json() for one in found],
        "left_out": {str(seed): fields for seed, fields in aside.items()},
    }
    options.answer(values, partial(_show_seeds, document, found, aside))
    if options.html is not None and not options.as_json:
        typer.echo(f"page: {options.html}")


def _show_seeds(
    document: ScoresDocument, found: Sequence[SeedComparison], aside: dict[int, list[str]]
) -> None:
    """Print a row for each score of the best cell, and the seeds that are left out."""
    if found:
        print_table(("SCORE", f"SEED {found[0].own}", "MEAN", "PLACE", "OTHER SEEDS"), map(_seed_row, found))
        typer.echo(f"at {document.best.cell}, the best cell here; ± is the standard deviation between seeds")
        if any(one.is_apart for one in found):
            typer.echo("≠ further from the mean of the others than their spread explains")
    else:
        typer.echo("MLflow has no scores of other seeds of this setting: set train.seed, then `diffctl run`")
    for seed, fields in sorted(aside.items()):
        why = f"the cards differ in {', '.join(fields)}" if fields else "its sweep lacks that cell"
        typer.echo(f"seed {seed} is left out: {why}")


def _seed_row(one: SeedComparison) -> tuple[str, ...]:
    own = f"{one.values[one.own]:.4g}{' ≠' * one.is_apart}"
    place = f"{one.place} of {len(one.values)}" if one.place else "-"
    others = ", ".join(f"{seed}: {value:.4g}" for seed, value in one.values.items() if seed != one.own)
    return one.metric, own, f"{one.mean:.4g} ± {format_spread(one.deviation)}", place, others
