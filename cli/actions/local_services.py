"""MLflow and Prefect on this machine."""

import os
import subprocess
import time

import typer

from cli.commands.servers import Ui, Up
from cli.shared.command import begin
from diffusion.system.errors import DiffctlError
from diffusion.system.signals import stop_request
from flows.prefect_server.local_servers import (
    KINDS,
    external_server,
    is_mlflow_healthy,
    is_port_free,
    mlflow_page,
)
from flows.prefect_server.local_servers import down as stop
from flows.prefect_server.local_servers import up as start
from tracking.connectivity import redact_uri
from tracking.runs.run_lookup import newest_experiment_link
from tracking.store import server_command, server_environment, tracking_uri


def start_servers(options: Up) -> None:
    """Carry out `diffctl up`."""
    servers = start({"mlflow": options.mlflow_port, "prefect": options.prefect_port}, typer.echo)
    for server in servers:
        typer.echo(f"{server.kind.title}: {server.page} (version {server.version}, process {server.pid})")
    for kind in KINDS:
        if (named := external_server(kind)) is not None:
            typer.echo(f"{kind.title}: {redact_uri(named)} (set by {kind.variable}, not started here)")
    if servers:
        typer.echo("they run until `diffctl down`")


def stop_servers() -> None:
    """Carry out `diffctl down`."""
    stopped = stop()
    for server in stopped:
        typer.echo(f"{server.kind.title} at {server.page} is stopped")
    if not stopped:
        typer.echo("no server of this folder is running")


def open_ui(options: Ui) -> None:
    """Carry out `diffctl ui`."""
    uri = tracking_uri()
    if page := mlflow_page(uri):
        begin("looking for the newest run")
        typer.echo(f"the runs are at {newest_experiment_link(page, uri)}")
        return
    if not is_port_free(options.port):
        raise DiffctlError(f"port {options.port} is in use: give another one with --port")
    begin("looking for the newest run")
    page = f"http://127.0.0.1:{options.port}"
    link = newest_experiment_link(page, uri)
    typer.echo(f"starting MLflow on 127.0.0.1:{options.port}")
    if code := _serve(uri, options.port, page, link):
        raise DiffctlError(f"the MLflow server failed (exit {code}): see its messages above")


POLL_SECONDS = 0.1


def _serve(uri: str, port: int, page: str, link: str) -> int:
    """Run MLflow's server until Ctrl-C or SIGTERM and return 0, or its exit code if it ends by itself."""
    with stop_request() as stop:
        # In a session of its own, since it prints a traceback on Ctrl-C.
        server = subprocess.Popen(
            server_command(port), env={**os.environ, **server_environment(uri)}, start_new_session=True
        )
        is_ready = False
        try:
            while (code := server.poll()) is None and stop.signal is None:
                if not is_ready and is_mlflow_healthy(page):
                    typer.echo(f"MLflow: {link} (Ctrl-C ends it)")
                    is_ready = True
                time.sleep(POLL_SECONDS)
        finally:  # also after a closed pipe
            server.terminate()
            server.wait()
        stop.clear()
    return code or 0
