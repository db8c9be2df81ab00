"""Commands over what was tracked: the trainings, and what an outage left behind."""

from typing import Annotated

import typer

from cli.shared.options import refuse_idle
from cli.shared.startup_message import begin

app = typer.Typer(name="runs", help="List the trainings: running, dead or done.", invoke_without_command=True)


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


@app.callback()
def runs(
    context: typer.Context,
    num: Annotated[int, typer.Option("--num", "-n", min=1, max=1000, help="The newest N.")] = 50,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the trainings of this project and of its MLflow, the newest first."""
    if context.invoked_subcommand is not None:
        return
    refuse_idle(context, "num", every, "beside --all")
    begin("reading the runs", as_json)
    from cli.actions import tracked_runs

    tracked_runs.show_runs(num, every, as_json)


@app.command("reap")
def reap(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Runs to mark. [default: the dead ones here]"),
    ] = None,
    pending: Annotated[
        int,
        typer.Option("--pending", min=0, max=10_000, help="Minutes after which a pending run is stranded."),
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Mark trainings whose process is gone as KILLED in MLflow; what they left is delivered first.

    Without names, scheduled runs that are stranded as Pending on Prefect are marked as Crashed too, where a
    server is known: they hold the slot of their deployment.
    """
    begin("looking for trainings without a process", as_json)
    from cli.actions import tracked_runs

    tracked_runs.reap_dead_runs(names, pending, as_json)


def sync(as_json: AsJson = False) -> None:
    """Deliver to MLflow what an outage left in runs/train/; every point arrives once."""
    begin("looking for what is not in MLflow yet", as_json)
    from cli.actions import tracked_runs

    tracked_runs.sync_runs(as_json)


def prune(
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="RUN", help="A run whose files stay."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this it is only listed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """List what params.yaml, the champion, searches and kept runs do not need in runs/; --yes removes it."""
    begin("looking through runs/", as_json)
    from cli.actions import run_pruning

    run_pruning.prune_runs(keep, yes, as_json)
