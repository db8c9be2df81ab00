"""The project: findings on its configuration, the schema, and files in runs/ that nothing needs."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial

import typer

from cli.commands.pipeline import Check, Schema
from cli.commands.registry import Prune
from cli.shared.console import print_table
from diffctl.installation import REMEDY, other_distributions
from diffusion.check import check
from diffusion.check.cost_estimate import SUBJECT, check_time
from diffusion.check.findings import Finding, Project
from diffusion.check.params_schema import schema_text
from diffusion.config import Config, load
from diffusion.system.errors import UsageError
from diffusion.system.memory import format_bytes
from diffusion.system.output_paths import write_output_text
from diffusion.system.signals import interrupt_on_signal
from flows.run_lock import hold_run_lock
from tracking.connectivity import MlflowError, MlflowUnavailable, redact_uri
from tracking.runs.leftovers import ROOTS, Leftover, find_leftovers, remove_leftovers
from tracking.store import check_access, tracking_uri

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


def check_project(options: Check) -> None:
    findings = []
    for finding in _findings(load(), options.measure):
        findings.append(finding)
        if not options.as_json:
            sign, colour = MARKS[finding.level]
            typer.echo(f"{typer.style(sign, fg=colour, bold=True)} {finding.subject}: {finding.message}")
            if finding.remedy:
                typer.echo(f"    {finding.remedy}")
    counts = {level: sum(one.level == level for one in findings) for level in ("error", "warning")}
    values = [{name: value for name, value in one._asdict().items() if value is not None} for one in findings]
    totals = (f"{count} {level}{'s' * (count != 1)}" for level, count in counts.items())
    options.answer(values, ", ".join(totals))
    if counts["error"]:
        raise typer.Exit(1)


def _findings(config: Config, measure: bool) -> Iterator[Finding]:
    """Yield findings as they are made, slow checks last; durations only if no stage would fail."""
    refused = False
    for finding in check(config):
        refused |= finding.level == "error"
        yield finding
    yield from _packages()
    yield (mlflow := _mlflow())
    if measure and (refused or mlflow.level == "error"):
        yield Finding("warning", SUBJECT, "not measured", "correct the errors first")
    elif measure:
        with interrupt_on_signal():
            yield from check_time(Project(config), partial(typer.echo, err=True))


def _packages() -> Iterator[Finding]:
    """Report other distributions that install packages of the names of diffctl's."""
    for package, others in other_distributions().items():
        message = f"{', '.join(others)} also installs a package {package}: one has overwritten the other"
        yield Finding("error", "installation", message, REMEDY)


def _mlflow() -> Finding:
    """Check the access to MLflow, since a training would find a wrong password only at its end."""
    try:
        check_access()
    except MlflowUnavailable as away:
        return Finding("warning", "MLflow", str(away), "trainings work without it, the registry does not")
    except MlflowError as error:
        return Finding("error", "MLflow", str(error))
    return Finding("ok", "MLflow", f"the runs are kept at {redact_uri(tracking_uri())}")


def write_schema(options: Schema) -> None:
    if options.out is None:
        return typer.echo(schema_text(), nl=False)
    write_output_text(options.out, schema_text())
    typer.echo(f"the schema of params.yaml: {options.out}")


def prune_runs(options: Prune) -> None:
    project = Project(load())
    if not any(any(root.glob("*/")) for root in ROOTS):  # such as before the first training
        return options.answer([], partial(_show_leftovers, [], [], options.yes))
    if not project.is_ready or project.plan is None:
        raise UsageError("the data of params.yaml are not prepared: `diffctl stage data` prepares them")
    plans = [plan for plan in (project.plan, project.classifier_plan) if plan is not None]
    with hold_run_lock() if options.yes else nullcontext():
        found = find_leftovers(project.config, plans, options.keep or [])
        busy = remove_leftovers(found) if options.yes else []
    rows = [{**vars(one), "removed": options.yes and one not in busy} for one in found]
    options.answer(rows, partial(_show_leftovers, found, busy, options.yes))


def _show_leftovers(found: Sequence[Leftover], busy: Sequence[Leftover], removed: bool) -> None:
    if not found:
        return typer.echo("runs/ contains nothing to remove")
    stays = {one.path: " (in use: stays)" for one in busy}
    cells = ((format_bytes(one.size), one.what + stays.get(one.path, ""), str(one.path)) for one in found)
    print_table(("SIZE", "WHAT", "FOLDER"), cells)
    total = format_bytes(sum(one.size for one in found if one not in busy))
    typer.echo(f"{total} removed" if removed else f"{total} may go: `diffctl prune --yes` removes them")
