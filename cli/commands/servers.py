"""`diffctl up`, `down`, `status`: servers in the background; `ui`: MLflow's in the foreground."""

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.shared.first_word import begin
from cli.shared.tables import show, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from flows.prefect_server.flow_runs import QueuedRun
    from flows.prefect_server.local_servers import LocalServer

POLL_SECONDS = 0.1

MlflowPort = Annotated[
    int, typer.Option("--mlflow-port", envvar="DIFFCTL_MLFLOW_PORT", min=1, max=65535, help="MLflow's port.")
]
PrefectPort = Annotated[
    int,
    typer.Option("--prefect-port", envvar="DIFFCTL_PREFECT_PORT", min=1, max=65535, help="Prefect's port."),
]


def up(mlflow_port: MlflowPort = 5000, prefect_port: PrefectPort = 4200) -> None:
    """Start MLflow and Prefect on this machine; they stay until `diffctl down`.

    `diffctl run` uses them from then on. A server that MLFLOW_TRACKING_URI or PREFECT_API_URL names is used
    instead of one of these.
    """
    from flows.prefect_server.local_servers import KINDS, external_server
    from flows.prefect_server.local_servers import up as start
    from tracking.connectivity import redact_uri

    servers = start({"mlflow": mlflow_port, "prefect": prefect_port}, typer.echo)
    for server in servers:
        typer.echo(
            f"{server.kind.title}: {server.page} (version {server.version}, process {server.record.pid})"
        )
    for kind in KINDS:
        if (named := external_server(kind)) is not None:
            typer.echo(f"{kind.title}: {redact_uri(named)} ({kind.variable} names it: none is started here)")
    if servers:
        typer.echo("they stay when this terminal closes; `diffctl down` stops them")


def down() -> None:
    """Stop the servers that `diffctl up` started in this folder, and no others."""
    from flows.prefect_server.local_servers import down as stop

    stopped = stop()
    for server in stopped:
        typer.echo(f"{server.kind.title} at {server.page} is stopped")
    if not stopped:
        typer.echo("none of this folder's servers is running")


def status(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False) -> None:
    """Show this folder's servers with their versions, and the runs that are at work or due."""
    from diffusion.system.errors import DiffctlError
    from flows.prefect_server.flow_runs import queued_runs
    from flows.prefect_server.local_servers import local_servers, prefect_url

    rows = [_row(server) for server in local_servers()]
    url = prefect_url()
    runs: list[QueuedRun] = []
    problem: DiffctlError | None = None
    if url:
        try:
            runs = queued_runs(url)
        except DiffctlError as error:
            problem = error
    if as_json:
        values = {"servers": rows, "prefect": url, "runs": [vars(run) for run in runs]}
        typer.echo(json.dumps(values, indent=2))
    else:
        _show_servers(rows)
        _show_queue(runs, url, problem is None)
    if problem:
        raise problem


def _row(server: "LocalServer") -> dict[str, Any]:
    """A server as `--json` tells it: its state is up, silent (alive without an answer) or dead."""
    from importlib.metadata import version

    alive = server.record.alive
    answer = server.version if alive else None
    return {
        "server": server.kind.name,
        "state": ("up" if answer else "silent") if alive else "dead",
        "address": server.page,
        "process": server.record.pid,
        "version": answer,
        "installed": version(server.kind.name),
    }


def _show_servers(rows: list[dict[str, Any]]) -> None:
    if not rows:
        typer.echo("none of this folder's servers is running: `diffctl up` starts them")
        return
    listed = table("SERVER", "STATE", "ADDRESS", "VERSION", "PROCESS")
    for row in rows:
        listed.add_row(row["server"], row["state"], row["address"], row["version"] or "", str(row["process"]))
    show(listed)
    for row in rows:
        if row["version"] not in (None, row["installed"]):
            typer.echo(
                f"{row['server']} runs as {row['version']}, and {row['installed']} is installed: "
                "`diffctl down` and `diffctl up` change that"
            )
        if row["state"] != "up":
            typer.echo(f"{row['server']} is {row['state']}: runs/servers/{row['server']}.log may say why")


def _show_queue(runs: "list[QueuedRun]", url: str | None, known: bool) -> None:
    from tracking.connectivity import redact_uri

    if not url or not known:
        return
    if not runs:
        typer.echo(f"no run is at work or due on Prefect at {redact_uri(url)}")
        return
    listed = table("RUN", "DEPLOYMENT", "STATE", "BEGAN OR DUE (UTC)", "ID")
    for run in runs:
        listed.add_row(run.name, run.deployment or "", run.state, run.time, run.flow_run)
    show(listed)


def ui(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The port of the UI.")] = 5000,
) -> None:
    """Open the runs in the MLflow UI, until Ctrl-C; where one is running already, print its address."""
    from diffusion.system.errors import DiffctlError
    from flows.prefect_server.local_servers import is_port_free, mlflow_page
    from tracking.runs.run_lookup import newest_experiment_link
    from tracking.store import tracking_uri

    uri = tracking_uri()
    if page := mlflow_page(uri):
        begin("looking for the newest run")
        typer.echo(f"the runs are at {newest_experiment_link(page, uri)}")
        return
    if not is_port_free(port):
        raise DiffctlError(f"port {port} of this machine is taken: give another one with --port")
    begin("looking for the newest run")
    link = newest_experiment_link(f"http://127.0.0.1:{port}", uri)
    _say(f"starting MLflow on 127.0.0.1:{port}")
    if code := _serve(uri, port, lambda: _say(f"MLflow: {link} (Ctrl-C ends it)")):
        raise DiffctlError(f"MLflow's server ended by itself (exit {code}), see the message above")


def _say(sentence: str) -> None:
    """Print it now, also where a pipe reads."""
    typer.echo(sentence)
    sys.stdout.flush()


def _serve(uri: str, port: int, ready: "Callable[[], object]") -> int:
    """Run MLflow's server until Ctrl-C or SIGTERM, which is its usual end: 0; else its exit code.

    `ready` is called once it answers.
    """
    from diffusion.system.signals import stop_request
    from flows.prefect_server.local_servers import is_mlflow_healthy
    from tracking.server import server_command, server_environment

    with stop_request() as stop:
        # In a session of its own: it answers a Ctrl-C with a traceback, and SIGTERM with silence.
        server = subprocess.Popen(
            server_command(port), env={**os.environ, **server_environment(uri)}, start_new_session=True
        )
        is_told = False
        try:
            while (code := server.poll()) is None and stop.signal is None:
                if not is_told and is_mlflow_healthy(port):
                    ready()
                    is_told = True
                time.sleep(POLL_SECONDS)
        finally:  # also where nobody reads what is said
            server.terminate()
            server.wait()
        stop.clear()
    return code or 0
