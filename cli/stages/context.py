"""What precedes a stage: shared resumable work, membership in the run that started it, and a check."""

from contextlib import suppress
from pathlib import Path

import typer

from diffusion.config import Config, load
from diffusion.layout import RUNS, home
from flows.run_lock import join_run


def enter_stage(context: typer.Context) -> None:
    """Check params.yaml, share resumable work, and keep other runs out of this folder until the end."""
    load()  # no stage begins if a later one would refuse its section
    share_runs()
    context.with_resource(join_run())


def share_runs() -> None:
    """Link runs/ to the main checkout in a temporary folder of `dvc exp run --temp` or `--queue`.

    The work in it is addressed by content and locked, so experiments can share it.
    """
    here = Path.cwd()
    main = home(here)
    if main == here:
        return
    (main / RUNS).mkdir(exist_ok=True)
    with suppress(FileExistsError):  # another stage made it
        RUNS.symlink_to(main / RUNS, target_is_directory=True)


def preflight(stage: str) -> Config:
    """Check the inputs of a stage and return the whole configuration, which only observers use.

    Warnings go to stderr, and a DiffctlError stops the stage.
    """
    from diffusion.check import preflight as iter_preflight  # it needs torch, which some stages do not

    config = load()
    for finding in iter_preflight(config, stage):
        remedy = f" ({finding.remedy})" if finding.remedy else ""
        typer.echo(f"{finding.subject}: {finding.message}{remedy}", err=True)
    return config
