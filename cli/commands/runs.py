"""`diffctl runs`, `sync` and `prune`: tracked trainings and their files."""

from typing import Annotated

import typer

from cli.shared.options import AsJson, refuse_idle
from cli.shared.startup_message import begin

app = typer.Typer(name="runs", help="List the trainings.", invoke_without_command=True)


@app.callback()
def runs(
    context: typer.Context,
    num: Annotated[int, typer.Option("--num", "-n", min=1, max=1000, help="Show the newest N.")] = 50,
    every: Annotated[bool, typer.Option("--all", help="Show all.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the trainings of this project and its MLflow, newest first."""
    if context.invoked_subcommand is not None:
        return
    refuse_idle(context, "num", every, "with --all")
    begin("reading the runs", as_json)
    from cli.actions import tracked_runs

    tracked_runs.show_runs(num, every, as_json)


@app.command("reap")
def reap(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Runs to mark. [default: dead runs of this project]"),
    ] = None,
    pending: Annotated[
        int,
        typer.Option(
            "--pending",
            min=0,
            max=10_000,
            help="Minutes until a pending Prefect run counts as crashed.",
        ),
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Mark trainings without a process as KILLED in MLflow.

    Their logs are delivered first.

    Without names, Prefect runs that stay Pending are also marked as
    Crashed, since they block their deployment.
    """
    begin("looking for dead trainings", as_json)
    from cli.actions import tracked_runs

    tracked_runs.reap_dead_runs(names, pending, as_json)


def sync(as_json: AsJson = False) -> None:
    """Deliver logs that MLflow missed during an outage, each point once."""
    begin("looking for undelivered logs", as_json)
    from cli.actions import tracked_runs

    tracked_runs.sync_runs(as_json)


def prune(
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="RUN", help="Keep the files of this run."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove the files; else they are only listed.")] = False,
    as_json: AsJson = False,
) -> None:
    """List or remove files in runs/ that nothing needs.

    Files of params.yaml, the champion, searches and kept runs stay.
    """
    begin("looking through runs/", as_json)
    from cli.actions import run_pruning

    run_pruning.prune_runs(keep, yes, as_json)
