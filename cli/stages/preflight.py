"""The check before a stage. It only observes: each stage loads its own sections."""

import typer

from diffusion.check import preflight as iter_preflight
from diffusion.config import Config, load


def preflight(stage: str) -> Config:
    """Return the whole configuration; warnings go to stderr, and DiffctlError stops the stage."""
    config = load()
    for finding in iter_preflight(config, stage):
        remedy = f" ({finding.remedy})" if finding.remedy else ""
        typer.echo(f"{finding.subject}: {finding.message}{remedy}", err=True)
    return config
