"""The tracked trainings and their undelivered logs."""

import time
from functools import partial

import typer

from cli.commands.registry import Reap, Runs, Sync
from cli.shared.console import print_table
from diffusion.system.errors import TemporaryError
from flows.prefect_server.flow_runs import reap_pending_runs
from tracking.runs.run_lookup import RunRow, list_runs, reap
from tracking.spool.sender import deliver_all

NOTHING = "nothing to mark: no dead training is RUNNING in MLflow"
SILENT_SECONDS = 120.0  # without a heartbeat, which is written every 10 s


def show_runs(options: Runs) -> None:
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
    reaped = reap(options.names or [])
    freed = [] if options.names else reap_pending_runs(60 * options.pending)
    lines = [f"{one.name}: {one.problem or 'marked KILLED'}" for one in reaped]
    lines += [f"{run['name']}: pending for {_span(run['seconds'])}, now Crashed on Prefect" for run in freed]
    options.answer([*map(vars, reaped), *freed], "\n".join(lines or [NOTHING]))
    if problems := [one for one in reaped if one.problem]:
        raise TemporaryError(f"{len(problems)} of {len(reaped)} could not be marked: try again later")


def sync_runs(options: Sync) -> None:
    synced = deliver_all()
    lines = [f"{one.folder}: {one.message}" for one in synced] or ["no training in runs/train/"]
    options.answer([vars(one) for one in synced], "\n".join(lines))
    if left := [one for one in synced if not one.done]:
        raise TemporaryError(f"{len(left)} of {len(synced)} are not completely in MLflow: try again later")


def _show_runs(rows: list[RunRow]) -> None:
    print_table(("NAME", "STATE", "STEP", "STARTED", "BEST SCORE", "RUN", "FOLDER"), map(_cells, rows))
    if any(row.undelivered for row in rows):
        typer.echo("* not all of it is in MLflow yet: `diffctl sync` delivers it")
    if any(row.state == "dead" for row in rows):
        typer.echo("dead: its process ended; `diffctl run` resumes it")
        typer.echo("if MLflow has it as RUNNING, `diffctl runs reap` marks it KILLED")


def _cells(row: RunRow) -> tuple[str, ...]:
    step = " of ".join(f"{number:,}" for number in (row.step, row.steps) if number is not None)
    state: str = row.state
    if state == "running" and row.heartbeat is not None and _since(row.heartbeat) >= SILENT_SECONDS:
        state += f", no sign for {_span(_since(row.heartbeat))}"
    state += " *" if row.undelivered else ""
    started = f"{_span(_since(row.started))} ago"
    return row.name, state, step, started, row.best or "", (row.run_id or "")[:8], row.folder or ""


def _since(milliseconds: int) -> float:
    """Return the seconds since a Unix time in milliseconds, 0 for the future."""
    return max(0.0, time.time() - milliseconds / 1000)


def _span(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
