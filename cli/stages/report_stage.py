"""The stage `report`: one page on the sweep."""

import typer

from diffusion.config import load
from diffusion.layout import LOSS_CURVE, PREPARED, REPORT, RUN, SAMPLES, SCORES
from diffusion.report import write_report
from tracking.runs.scored_runs import log_report


def run_stage() -> None:
    """Write the report and log it."""
    page = write_report(load(), SAMPLES, SCORES, PREPARED, LOSS_CURVE, RUN, REPORT)
    log_report(RUN, REPORT)
    typer.echo(f"report: {page}")
