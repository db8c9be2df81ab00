"""The findings of `diffctl check`."""

from collections.abc import Iterator
from typing import Any

import typer

from cli.commands.pipeline import Check, Schema
from diffusion.check import iter_findings
from diffusion.check.findings import Finding, Project
from diffusion.check.params_schema import schema_text
from diffusion.check.time_estimate import SUBJECT, check_time
from diffusion.config import Config, load
from diffusion.system.output_paths import write_output_text
from diffusion.system.signals import interrupt_on_signal
from tracking.connectivity import MlflowError, MlflowUnavailable, redact_uri
from tracking.store import check_access, tracking_uri


def check_project(options: Check) -> None:
    """Carry out `diffctl check`."""
    config, findings = load(), []
    for finding in _findings(config, options.measure):
        findings.append(finding)
        if not options.as_json:
            _show(finding)
    errors, warnings = (sum(one.level == level for one in findings) for level in ("error", "warning"))
    options.answer([_values(finding) for finding in findings], f"{errors} errors, {warnings} warnings")
    if errors:
        raise typer.Exit(1)


MARKS = {"ok": "✓", "warning": "!", "error": "✗"}
COLOURS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "error": typer.colors.RED}


def _findings(config: Config, measure: bool) -> Iterator[Finding]:
    """Yield findings as they are made, slow checks last."""
    refused = False
    for finding in iter_findings(config):
        refused |= finding.level == "error"
        yield finding
    yield (mlflow := _mlflow())
    if measure:
        yield from _times(config, refused or mlflow.level == "error")


def _mlflow() -> Finding:
    """Check the access to MLflow, since a training would find a wrong password only at its end."""
    try:
        check_access()
    except MlflowUnavailable as away:
        return Finding("warning", "MLflow", str(away), "trainings work without it, the registry does not")
    except MlflowError as error:
        return Finding("error", "MLflow", str(error))
    return Finding("ok", "MLflow", f"the runs are kept at {redact_uri(tracking_uri())}")


def _times(config: Config, refused: bool) -> list[Finding]:
    """Estimate the durations of training, sweep and scoring, unless one of them would fail."""
    if refused:
        return [Finding("warning", SUBJECT, "not measured", "correct the errors first")]
    with interrupt_on_signal():
        return list(check_time(Project(config), lambda sentence: typer.echo(sentence, err=True)))


def _values(finding: Finding) -> dict[str, Any]:
    """Return the finding as JSON values, without missing numbers."""
    return {name: value for name, value in finding._asdict().items() if value is not None}


def _show(finding: Finding) -> None:
    mark = typer.style(MARKS[finding.level], fg=COLOURS[finding.level], bold=True)
    typer.echo(f"{mark} {finding.subject}: {finding.message}")
    if finding.remedy:
        typer.echo(f"    {finding.remedy}")


def write_schema(options: Schema) -> None:
    """Carry out `diffctl schema`."""
    if options.out is None:
        return typer.echo(schema_text(), nl=False)
    write_output_text(options.out, schema_text())
    typer.echo(f"the schema of params.yaml: {options.out}")
