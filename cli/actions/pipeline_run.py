"""The pipeline, supervised."""

import typer

from cli.actions.score_tables import show_sweep_scores
from diffusion.layout import REPORT, SCORES
from diffusion.protocol.scores_document import read_scores
from flows.pipeline_steps import run_pipeline


def run_stages(push: bool, fresh: bool, keep: bool) -> None:
    """Carry out `diffctl run`."""
    outcome = run_pipeline(push=push, fresh=fresh, keep=keep)
    typer.echo()
    show_sweep_scores(read_scores(SCORES))
    typer.echo(f"\nmodel:  {outcome}")
    typer.echo(f"report: {REPORT / 'index.html'}")
    typer.echo("runs:   `make ui` (or `diffctl ui`) opens them in MLflow")
