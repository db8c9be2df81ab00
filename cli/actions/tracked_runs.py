"""The tracked trainings and their undelivered logs."""

from functools import partial

import typer

from cli.commands.registry import Reap, Runs, Sync
from cli.shared.tables import ago, show, since, span, table
from diffusion.system.errors import TemporaryError
from flows.prefect_server.flow_runs import reap_pending_runs
from tracking.runs.run_overview import RunRow, list_runs
from tracking.runs.run_overview import reap as reap_runs
from tracking.spool.sender import deliver_all


def show_runs(options: Runs) -> None:
    """Carry out `diffctl runs`."""
    rows, problem = list_runs(newest=None if options.every else options.num + 1)
    more = not options.every and len(rows) > options.num
    rows = rows if options.every else rows[: options.num]
    if rows or options.as_json:
        options.answer([vars(row) for row in rows], partial(_show_runs, rows))
    elif not problem:
        typer.echo("no trainings yet: `diffctl run` starts one")
    if more and not options.as_json:
        typer.echo(f"newest {options.num}: `diffctl runs --all` lists all")
    if problem:
        raise type(problem)(f"{problem}; only the trainings in runs/ are listed")


def reap_dead_runs(options: Reap) -> None:
    """Carry out `diffctl runs reap`."""
    reaped = reap_runs(options.names or [])
    freed = [] if options.names else reap_pending_runs(60 * options.pending)
    lines = [f"{one.name}: {one.problem or 'marked KILLED'}" for one in reaped]
    lines += [f"{one.name}: pending for {span(one.seconds)} on Prefect, marked Crashed" for one in freed]
    values = [vars(one) for one in (*reaped, *freed)]
    options.answer(values, "\n".join(lines or ["no dead training"]))
    if problems := [one for one in reaped if one.problem]:
        raise TemporaryError(f"{len(problems)} of {len(reaped)} could not be marked: try again later")


def sync_runs(options: Sync) -> None:
    """Carry out `diffctl sync`."""
    synced = deliver_all()
    lines = [f"{one.folder}: {one.message}" for one in synced] or ["no training in runs/train/"]
    options.answer([vars(one) for one in synced], "\n".join(lines))
    if left := [one for one in synced if not one.done]:
        raise TemporaryError(f"{len(left)} of {len(synced)} are not completely in MLflow: try again later")


SILENT_SECONDS = 120.0  # without a heartbeat, which is written every 10 s


def _show_runs(rows: list[RunRow]) -> None:
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
        typer.echo("dead: its process ended; `diffctl run` resumes it, `diffctl runs reap` marks it KILLED")


def _state(row: RunRow) -> str:
    """Return the state; of a running one without heartbeats also for how long."""
    if row.state != "running" or row.heartbeat is None or since(row.heartbeat) < SILENT_SECONDS:
        return row.state
    return f"running, no sign for {span(since(row.heartbeat))}"
