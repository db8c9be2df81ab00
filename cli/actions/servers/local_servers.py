"""MLflow and Prefect on this machine, and `diffctl status`: servers, runs, champion, disk and metrics."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any

import typer

from cli.commands.servers import Status, Ui, Up
from cli.shared.command import begin
from cli.shared.console import print_table
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.memory import format_bytes
from diffusion.system.signals import stop_request
from flows.prefect_server import local_servers as local
from flows.prefect_server.flow_runs import Row, prefect_status
from tracking.connectivity import redact_uri
from tracking.registry.registered_models import list_versions, project_model, read_champion_history
from tracking.runs.run_lookup import newest_experiment_link
from tracking.spool.spool_status import DeliveryState, list_trainings
from tracking.store import server_command, server_environment, tracking_uri

POLL_SECONDS = 0.1
MIN_FREE = 5e9  # bytes on the disk of this folder
MANY_KEPT_OUT = 3  # models in a row


def start_servers(options: Up) -> None:
    servers = local.up({"mlflow": options.mlflow_port, "prefect": options.prefect_port})
    for server in servers:
        typer.echo(f"{server.kind.title}: {server.page} (version {server.version}, process {server.pid})")
    for kind in local.KINDS:
        if (named := local.external_server(kind)) is not None:
            typer.echo(f"{kind.title}: {redact_uri(named)} (set by {kind.variable}, not started here)")
    if servers:
        typer.echo("they run until `diffctl down`")


def stop_servers(_: object) -> None:
    stopped = local.down()
    for server in stopped:
        typer.echo(f"{server.kind.title} at {server.page} is stopped")
    if not stopped:
        typer.echo("no server of this folder is running")


def open_ui(options: Ui) -> None:
    uri = tracking_uri()
    running = local.mlflow_page(uri)
    if running is None and not local.is_port_free(options.port):
        raise DiffctlError(f"port {options.port} is in use: give another one with --port")
    begin("looking for the newest run")
    page = running or f"http://127.0.0.1:{options.port}"
    link = newest_experiment_link(page, uri)
    if running:
        return typer.echo(f"the runs are at {link}")
    typer.echo(f"starting MLflow on 127.0.0.1:{options.port}")
    if code := _serve(uri, options.port, page, link):
        raise DiffctlError(f"the MLflow server failed (exit {code}): see its messages above")


def _serve(uri: str, port: int, page: str, link: str) -> int:
    """Run MLflow's server until Ctrl-C or SIGTERM and return 0, or its exit code if it ends by itself."""
    with stop_request() as stop:
        env = {**os.environ, **server_environment(uri)}
        # In a session of its own, since it prints a traceback on Ctrl-C.
        server = subprocess.Popen(server_command(port), env=env, start_new_session=True)
        is_ready = False
        try:
            while (code := server.poll()) is None and stop.signal is None:
                if not is_ready and local.is_mlflow_healthy(page):
                    typer.echo(f"MLflow: {link} (Ctrl-C ends it)")
                    is_ready = True
                time.sleep(POLL_SECONDS)
        finally:  # also after a closed pipe
            server.terminate()
            server.wait()
        stop.clear()
    return code or 0


def show_status(options: Status) -> None:
    """Carry out `diffctl status`; with --check exit with 1 if something needs attention."""
    url, check = local.prefect_url(), options.check_problems
    status: dict[str, list[Row]] = {"runs": [], "deployments": [], "workers": []}
    failure: DiffctlError | None = None
    try:
        status = prefect_status(url) if url else status
    except DiffctlError as error:
        failure = error
    disk, uri = shutil.disk_usage("."), tracking_uri()
    ended = (one.folder for one in list_trainings() if one.state != "running")
    found = {
        "servers": [_describe(server) for server in local.local_servers()],
        "prefect": url,
        **status,
        "champion": _champion(),
        "disk": {"free": disk.free, "total": disk.total},
        "undelivered": [str(folder) for folder in ended if not DeliveryState.load(folder, uri).complete],
    }
    problems = [*([str(failure)] if failure else []), *_problems(found)]
    shown = partial(_show, found, None if failure else url, problems if check else [])
    options.answer({**found, "problems": problems}, shown)
    if failure and not check:
        raise failure
    if problems and check:
        raise typer.Exit(1)


def _describe(server: local.LocalServer) -> dict[str, Any]:
    """Return a server as JSON values. Its state is up, silent (alive, but not answering) or dead."""
    alive = server.alive
    answer = server.version if alive else None
    return {
        "server": server.kind.name,
        "state": ("up" if answer else "silent") if alive else "dead",
        "address": server.page,
        "process": server.pid,
        "version": answer,
        "installed": version(server.kind.name),
    }


def _champion() -> dict[str, Any] | None:
    """Return the champion's last move and the models kept out after the newest of all champions.

    If MLflow is away, return the reason.
    """
    try:
        name = project_model()
        moves = read_champion_history(name).events
    except UsageError:  # no registered model
        return None
    except DiffctlError as error:
        return {"unknown": str(error)}
    if not moves:
        return None
    newest = max(move.after for move in moves)
    kept_out = sum(one.version > newest for one in list_versions(name))
    at = datetime.fromtimestamp(moves[-1].at / 1000, UTC)
    values = moves[-1].model_dump(include={"after", "how", "who", "reason"})
    time = f"{at:%Y-%m-%d %H:%M}"
    return {"model": name, **values, "time": time, "newest": newest, "kept_out": kept_out}


def _problems(found: dict[str, Any]) -> Iterator[str]:
    """Yield what needs attention."""
    for server in found["servers"]:
        if server["state"] != "up":
            yield f"{server['server']} is {server['state']}"
    for run in found["deployments"]:
        if run["failed"]:
            yield f"the last run of {run['deployment']} is {run['state']} ({run['reason']})"
    polled = {worker["pool"] for worker in found["workers"] if worker["online"]}
    for pool in sorted({one["pool"] for one in found["deployments"]} - polled - {""}):
        yield f"no worker polls for scheduled runs of the work pool {pool}"
    if found["disk"]["free"] < MIN_FREE:
        yield f"only {format_bytes(found['disk']['free'])} are free on the disk of this folder"
    if found["undelivered"]:
        yield f"trainings with undelivered metrics: {len(found['undelivered'])}"
    champion = found["champion"] or {}
    if "unknown" in champion:
        yield str(champion["unknown"])
    if champion.get("kept_out", 0) >= MANY_KEPT_OUT:
        yield f"the last {champion['kept_out']} models were kept out"


def _show(found: dict[str, Any], url: str | None, problems: list[str]) -> None:
    _show_servers(found["servers"])
    if url:
        _show_prefect(found, url)
    if (champion := found["champion"]) and "unknown" not in champion:
        since = f"since {champion['time']} UTC, by {champion['how']}"
        kept_out = f"models kept out after version {champion['newest']}: {champion['kept_out']}"
        typer.echo(f"champion: {champion['model']} version {champion['after']} {since}; {kept_out}")
    free, total = (format_bytes(found["disk"][name]) for name in ("free", "total"))
    typer.echo(f"disk: {free} of {total} are free")
    if found["undelivered"]:
        typer.echo(f"trainings with undelivered metrics: {len(found['undelivered'])} (see `diffctl sync`)")
    for problem in problems:
        typer.echo(f"problem: {problem}")


def _show_servers(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return typer.echo("no server of this folder is running: `diffctl up` starts them")
    names = ("server", "state", "address", "version", "process")
    print_table([name.upper() for name in names], ([str(row[name] or "") for name in names] for row in rows))
    for row in rows:
        name, running = row["server"], row["version"]
        if running not in (None, row["installed"]):
            typer.echo(f"{name} {running} runs, not {row['installed']}: `diffctl down`, then `diffctl up`")
        if row["state"] != "up":
            typer.echo(f"{name} is {row['state']}: see runs/servers/{name}.log")


def _show_prefect(found: dict[str, Any], url: str) -> None:
    """Print unfinished runs, deployments with their last runs, and workers."""
    if runs := found["runs"]:
        names = ("name", "deployment", "state", "time", "flow_run")
        headings = ("RUN", "DEPLOYMENT", "STATE", "START (UTC)", "ID")
        print_table(headings, ([run[name] or "" for name in names] for run in runs))
    else:
        typer.echo(f"no active or scheduled run on Prefect at {redact_uri(url)}")
    if not found["deployments"]:
        return
    rows = (
        (run["deployment"], run["state"] or "none", run["time"], run["reason"] if run["failed"] else "")
        for run in found["deployments"]
    )
    print_table(("DEPLOYMENT", "LAST RUN", "END (UTC)", "REASON"), rows)
    for one in found["workers"]:
        state, polled = "online" if one["online"] else "offline", one["time"] or "never"
        typer.echo(f"worker {one['worker']} of pool {one['pool']} is {state}, last poll {polled} UTC")
