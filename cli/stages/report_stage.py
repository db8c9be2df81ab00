"""The stage `report`: one page on the sweep."""

import typer

from cli.stages.context import preflight
from diffusion.layout import REPORT
from diffusion.report.write import read_inputs, write_report
from tracking.runs.scored_runs import log_report


def run_stage(_: object) -> None:
    """Write the report and log it."""
    page = write_report(read_inputs(preflight("report")), REPORT)
    log_report()
    typer.echo(f"report: {page}")
