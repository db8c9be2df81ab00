"""Commands over what was tracked: the trainings, and what an outage left behind."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from cli.shared.first_word import begin
from cli.shared.flags import refuse_idle
from cli.shared.tables import ago, show, since, span, table

if TYPE_CHECKING:
    from tracking.runs.run_overview import RunRow

app = typer.Typer(help="List the trainings: running, dead or done.", invoke_without_command=True)

SILENT_SECONDS = 120.0  # without a heartbeat, which comes every ten seconds at least while steps are made

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
    from tracking.runs.run_overview import list_runs

    rows, problem = list_runs(newest=None if every else num + 1)
    more = not every and len(rows) > num
    rows = rows if every else rows[:num]
    if as_json:
        typer.echo(json.dumps([vars(row) for row in rows], indent=2))
    elif rows:
        _show_runs(rows)
        if more:
            typer.echo(f"these are the newest {num}: `diffctl runs --all` lists the others too")
    elif not problem:
        typer.echo("no trainings yet: `diffctl run` starts one")
    if problem:
        raise type(problem)(f"{problem}; only what lies in runs/ is shown")


def _show_runs(rows: "list[RunRow]") -> None:
    listed = table("NAME", "STATE", "STEP", "STARTED", "BEST SCORE", "RUN", "FOLDER")
    for row in rows:
        step = " of ".join(f"{number:,}" for number in (row.step, row.steps) if number is not None)
        state = f"{_state(row)} *" if row.undelivered else _state(row)
        run_id = row.run_id[:8] if row.run_id else ""
        listed.add_row(row.name, state, step, ago(row.started), row.best or "", run_id, row.folder or "")
    show(listed)
    if any(row.undelivered for row in rows):
        typer.echo("* not all of it is in MLflow yet: `diffctl sync` delivers it")
    if any(row.state == "dead" for row in rows):
        typer.echo(
            "dead: its process is gone; `diffctl run` goes on with it, `diffctl runs reap` marks it KILLED"
        )


def _state(row: "RunRow") -> str:
    """Of a running one that hangs, is stopped or makes something other than steps: since when."""
    if row.state != "running" or row.heartbeat is None or since(row.heartbeat) < SILENT_SECONDS:
        return row.state
    return f"running, no sign for {span(since(row.heartbeat))}"


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
    from diffusion.system.errors import TemporaryError
    from flows.prefect_server.flow_runs import reap_pending_runs
    from tracking.runs.run_overview import reap as reap_runs

    reaped = reap_runs(names or [])
    freed = [] if names else reap_pending_runs(60 * pending)
    if as_json:
        typer.echo(json.dumps([vars(one) for one in (*reaped, *freed)], indent=2))
    else:
        for one in reaped:
            typer.echo(f"{one.name}: {one.problem or 'marked KILLED'}")
        for stranded in freed:
            typer.echo(
                f"{stranded.name}: was pending for {span(stranded.seconds)} on Prefect, is Crashed now"
            )
        if not reaped and not freed:
            typer.echo("no dead training is left unmarked")
    if problems := [one for one in reaped if one.problem]:
        raise TemporaryError(f"{len(problems)} of {len(reaped)} could not be marked: try again later")


def sync(as_json: AsJson = False) -> None:
    """Deliver to MLflow what an outage left in runs/train/; every point arrives once."""
    begin("looking for what is not in MLflow yet", as_json)
    from diffusion.system.errors import TemporaryError
    from tracking.spool.sender import deliver_all as deliver_all

    synced = deliver_all()
    if as_json:
        typer.echo(json.dumps([{**vars(one), "folder": str(one.folder)} for one in synced], indent=2))
    else:
        for one in synced:
            typer.echo(f"{one.folder}: {one.message}")
        if not synced:
            typer.echo("there is nothing in runs/train/")
    if left := [one for one in synced if not one.done]:
        raise TemporaryError(
            f"{len(left)} of {len(synced)} trainings are not wholly in MLflow: try again later"
        )
