"""`diffctl run`: the pipeline, supervised; and `diffctl ui`: what it left in MLflow."""

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from cli.shared.tables import show, table

if TYPE_CHECKING:
    from diffusion.protocol.scores import ScoresDocument

POLL_SECONDS = 0.1


def run(
    push: Annotated[bool, typer.Option("--push", help="Send what was made to the DVC remote.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train and sample from nothing, saved states discarded.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Go on with the training though its code has changed since.")
    ] = False,
) -> None:
    """Bring everything up to date: data, model, samples, scores, report and registry.

    Only what is stale is made. Ctrl-C saves; the same command goes on.
    """
    typer.echo("==> starting; Ctrl-C saves what there is, and the same command goes on")
    from diffusion.layout import REPORT, SCORES
    from diffusion.protocol.scores import read_scores
    from flows.run import run_pipeline

    outcome = run_pipeline(push=push, fresh=fresh, keep=keep)
    typer.echo()
    _show_scores(read_scores(SCORES))
    typer.echo(f"\nmodel:  {outcome}")
    typer.echo(f"report: {REPORT / 'index.html'}")
    typer.echo("runs:   `make ui` (or `diffctl ui`) opens them in MLflow")


def _show_scores(document: "ScoresDocument") -> None:
    """A row a cell, by its axes; the best one is marked."""
    from diffusion.choice.chosen import too_low_by
    from diffusion.protocol.grid import AXES, order, shown

    spec, chosen = document.spec, document.best
    cells = sorted(document.cells.values(), key=lambda cell: order(cell.axes))
    winner = document.cells[chosen.cell]
    names = [spec.distance, "excess", spec.kernel_distance, *spec.results]
    names = [name for name in names if all(name in cell.scores for cell in cells)]
    axes = [axis for axis in AXES if any(axis in cell.axes for cell in cells)]
    listed = table(*(axis.upper() for axis in axes), *names, "")
    for cell in cells:
        values = [f"{cell.scores[name]:.4g}" for name in names]
        listed.add_row(
            *(shown(cell.axes.get(axis, "")) for axis in axes), *values, "*" if cell is winner else ""
        )
    show(listed)
    reference = document.reference
    typer.echo(
        f"{cells[0].num_images:,} images a cell against {reference.reference_count:,} of "
        f"{reference.name} ({reference.reference_split}), extractor {spec.name}; "
        f"* the best by {chosen.metric}"
    )
    if aside := too_low_by(chosen):
        typer.echo(f"its {chosen.metric} is {aside}")


def ui(port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 5000) -> None:
    """Open the runs in the MLflow UI, until Ctrl-C; a server that MLFLOW_TRACKING_URI names is only told."""
    from diffusion.system.errors import DiffctlError
    from tracking.reach import public
    from tracking.store import connect, tracking_uri

    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        typer.echo(f"the runs are at {public(uri)}")
        return
    if not _is_free(port):
        raise DiffctlError(f"port {port} of this machine is taken: give another one with --port")
    connect(uri)  # makes the store when it is not there yet
    typer.echo(f"MLflow: http://127.0.0.1:{port} (Ctrl-C ends it)")
    sys.stdout.flush()
    if code := _serve(uri, port):
        raise DiffctlError(f"MLflow's server ended by itself (exit {code}), see the message above")


def _serve(uri: str, port: int) -> int:
    """Run MLflow's server until Ctrl-C or SIGTERM, which is its usual end: 0; else its exit code."""
    from diffusion.system.signals import stop_request

    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", uri, "--registry-store-uri", uri]
    command += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    quick = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    quiet = {"PYTHONWARNINGS": "ignore"}
    with stop_request() as stop:
        # In a session of its own: it answers a Ctrl-C with a traceback, and SIGTERM with silence.
        server = subprocess.Popen(command, env={**quick, **quiet, **os.environ}, start_new_session=True)
        while (code := server.poll()) is None and stop.signal is None:
            time.sleep(POLL_SECONDS)
        server.terminate()
        server.wait()
        stop.forget()
    return code or 0


def _is_free(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
