"""`diffctl compare`: scores of several runs, and of the seeds of one setting."""

from pathlib import Path
from typing import Annotated

import typer

from cli.shared.options import file_option
from cli.shared.startup_message import begin
from diffusion.system.errors import UsageError


def compare(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="A run's id (or a prefix), its name, or a scores.json."),
    ],
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="Show only this score; repeatable.")
    ] = None,
    html: Annotated[
        Path | None,
        file_option("--html", help="Also write a self-contained page with curves and images."),
    ] = None,
    per_seed: Annotated[
        bool, typer.Option("--per-seed", help="Show trainings that differ only in the seed separately.")
    ] = False,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open MLflow's page of these runs in a browser.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Compare the scores of runs whose protocol cards agree.

    Trainings that differ only in the seed are one column with mean and standard deviation. A gap within the
    confidence interval is marked as not significant. A row without intervals has no best.
    """
    if len(names) < 2:
        raise UsageError("compare needs two runs or more")
    begin("reading the scores", as_json)
    from cli.actions import run_comparison

    run_comparison.compare_runs(names, metric, html, per_seed, open_page, as_json)


def seeds(
    html: Annotated[
        Path | None, file_option("--html", help="Also write the report with this table, self-contained.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Compare the scores of this training with those of other seeds in MLflow.

    For each score of the best cell: its value, mean and standard deviation over the seeds, and its rank.
    """
    begin("reading the scores of the seeds", as_json)
    from cli.actions import seed_table

    seed_table.show_seeds(html, as_json)
