"""`diffctl compare`: the scores of trainings side by side, as far as their protocols agree."""

from pathlib import Path
from typing import Annotated

import typer

from cli.shared.options import file_option
from cli.shared.startup_message import begin
from diffusion.system.errors import UsageError


def compare(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="A run's id, its beginning or name, or a scores.json."),
    ],
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="Show this score; may be repeated.")
    ] = None,
    html: Annotated[
        Path | None,
        file_option("--html", help="Write a page with curves and images too; it needs no network."),
    ] = None,
    apart: Annotated[
        bool, typer.Option("--apart", help="Show trainings that differ only in their seed one by one.")
    ] = False,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open MLflow's own page of these runs in a browser.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Compare scores. Only numbers whose protocol cards agree stand side by side.

    Trainings that differ only in their seed are one column: their mean, beside what another seed changes.
    A gap inside the confidence intervals is marked, since it says nothing; no number is marked the best of a
    row that lacks intervals.
    """
    if len(names) < 2:
        raise UsageError("compare needs two runs or more")
    begin("reading the scores", as_json)
    from cli.actions import run_comparison

    run_comparison.compare_runs(names, metric, html, apart, open_page, as_json)


def seeds(
    html: Annotated[
        Path | None, file_option("--html", help="Write the report with this in it; it needs no network.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Set the scores of metrics/scores.json beside those of other seeds that MLflow knows.

    Each score of the best cell: this training's, mean and spread over the seeds, and its place among them.
    """
    begin("reading the scores of the seeds", as_json)
    from cli.actions import seed_table

    seed_table.show_seeds(html, as_json)
