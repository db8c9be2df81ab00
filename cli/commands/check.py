"""`diffctl check`: what would fail later, in seconds."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusion.check.findings import Finding
    from diffusion.config import Config

MARKS = {"ok": "✓", "warning": "!", "error": "✗"}
COLOURS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "error": typer.colors.RED}


def check(
    measure: Annotated[
        bool, typer.Option("--measure", help="Say how long it takes, by a few steps and images; kept.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look for what would fail later, in seconds, and what it costs: data, model, disk, memory, weights."""
    import json

    from diffusion.check import check as run_checks
    from diffusion.config import load

    config = load()
    findings = [*run_checks(config), _mlflow(), *_prefect()]
    if measure:
        findings += _times(config, findings)
    if as_json:
        typer.echo(json.dumps([_values(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        _show(findings)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


def _mlflow() -> "Finding":
    """Whether the runs' store lets us in: a wrong password would be found at the end of a training."""
    from diffusion.check.findings import Finding
    from flows.local import MLFLOW
    from flows.versions import older
    from tracking.ask import ask
    from tracking.reach import MlflowAway, MlflowError, public
    from tracking.store import tracking_uri

    try:
        ask()
    except MlflowAway as away:
        return Finding("warning", "MLflow", str(away), "a training goes on without it, the registry does not")
    except MlflowError as error:
        return Finding("error", "MLflow", str(error), older(MLFLOW, tracking_uri()) or "")
    if sentence := older(MLFLOW, tracking_uri()):
        return Finding("warning", "MLflow", sentence)
    return Finding("ok", "MLflow", f"the runs are kept at {public(tracking_uri())}")


def _prefect() -> "Iterator[Finding]":
    """Whether a Prefect server that runs would use is older than what would talk to it."""
    from diffusion.check.findings import Finding
    from flows.local import PREFECT, prefect_known
    from flows.versions import older

    url = prefect_known()
    if url and (sentence := older(PREFECT, url)):
        yield Finding("warning", "Prefect", sentence)


def _times(config: "Config", findings: "list[Finding]") -> "list[Finding]":
    """How long training, sweep and scoring take; not where one of them would fail."""
    from diffusion.check.findings import Finding, Project
    from diffusion.check.hours import TIME, check_time
    from diffusion.system.signals import ended_by_signal

    if any(finding.level == "error" for finding in findings):
        return [Finding("warning", TIME, "not measured", "see to what would fail first")]
    with ended_by_signal():
        return list(check_time(Project(config), lambda sentence: typer.echo(sentence, err=True)))


def _values(finding: "Finding") -> dict[str, Any]:
    """The finding as JSON has it: numbers only where it has some."""
    return {name: value for name, value in finding._asdict().items() if value is not None}


def _show(findings: "list[Finding]") -> None:
    for finding in findings:
        mark = typer.style(MARKS[finding.level], fg=COLOURS[finding.level], bold=True)
        typer.echo(f"{mark} {finding.subject}: {finding.message}")
        if finding.remedy:
            typer.echo(f"    {finding.remedy}")
    levels = [finding.level for finding in findings]
    errors, warnings = levels.count("error"), levels.count("warning")
    typer.echo(f"{errors} would fail, {warnings} to know about")
