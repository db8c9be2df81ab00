"""The stage `report`: one page on the sweep."""

import typer

from cli.stages.context import preflight
from diffusion.config import load
from diffusion.layout import REPORT
from diffusion.report.write import read_inputs, write_report
from tracking.runs.score_logging import log_report


def run_stage(_: object) -> None:
    """Write the report and log it."""
    inputs = read_inputs(load())
    preflight("report")
    page = write_report(inputs, REPORT)
    log_report()
    typer.echo(f"report: {page}")
