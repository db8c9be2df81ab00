"""`diffctl check`: what would fail later, in seconds."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from diffusion.check.findings import Finding

MARKS = {"ok": "✓", "warning": "!", "error": "✗"}
COLOURS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "error": typer.colors.RED}


def check(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look for what would fail later, in seconds: data, labels, batch, model, disk, memory, weights."""
    import json

    from diffusion.check import check as run_checks
    from diffusion.config import load

    findings = run_checks(load())
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=2, ensure_ascii=False))
    else:
        _show(findings)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


def _show(findings: "list[Finding]") -> None:
    for finding in findings:
        mark = typer.style(MARKS[finding.level], fg=COLOURS[finding.level], bold=True)
        typer.echo(f"{mark} {finding.subject}: {finding.message}")
        if finding.remedy:
            typer.echo(f"    {finding.remedy}")
    levels = [finding.level for finding in findings]
    errors, warnings = levels.count("error"), levels.count("warning")
    typer.echo(f"{errors} would fail, {warnings} to know about")
