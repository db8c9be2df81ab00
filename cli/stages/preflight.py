"""What a stage looks at before its work. It only watches: what a result depends on, a body loads itself."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from diffusion.config import Config


def whole_config() -> "Config":
    """All of params.yaml, so that no stage begins what a later one would refuse."""
    from diffusion.config import load

    return load()


def preflight(stage: str) -> "Config":
    """What a stage looks at before its work; an error stops it, warnings go to stderr. As `whole_config`."""
    from diffusion.check import preflight as run_preflight

    config = whole_config()
    for finding in run_preflight(config, stage):
        remedy = f" ({finding.remedy})" if finding.remedy else ""
        typer.echo(f"{finding.subject}: {finding.message}{remedy}", err=True)
    return config
