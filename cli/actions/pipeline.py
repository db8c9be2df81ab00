"""The pipeline: run here, or deployed on a Prefect server."""

import typer

from cli.actions.scores.score_tables import show_sweep_scores
from cli.commands.pipeline import DataChanged, Deploy, Run
from diffusion.config import load
from diffusion.layout import REPORT, SCORES
from diffusion.protocol.scores_document import read_scores
from flows.pipeline_run import run_pipeline
from flows.prefect_server.deployments import deploy_all, emit_data_changed
from flows.prefect_server.local_servers import require_prefect_url
from tracking.connectivity import redact_uri


def run_stages(options: Run) -> None:
    outcome = run_pipeline(push=options.push, fresh=options.fresh, keep=options.keep)
    typer.echo()
    show_sweep_scores(read_scores(SCORES))
    typer.echo(f"\nmodel:  {outcome}")
    typer.echo(f"report: {REPORT / 'index.html'}")
    typer.echo("runs:   `diffctl ui` opens them in MLflow")


def deploy_to_prefect(options: Deploy) -> None:
    url = require_prefect_url()
    deployed = deploy_all(url)

    def show_deployed() -> None:
        for one in deployed:
            typer.echo(f"{one['name']}: {one['description']}")
        typer.echo(f"on Prefect at {redact_uri(url)}; a worker runs them: `diffctl docs operations`")

    options.answer(deployed, show_deployed)


def emit_event(options: DataChanged) -> None:
    name = options.data or load().data.name
    url = require_prefect_url()
    emit_data_changed(url, name)
    typer.echo(f"event sent to Prefect at {redact_uri(url)}: {name} has changed")
