"""Checks before and after a stage, its folder of resumable work, and the run that it belongs to."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

from cli.stages.used_inputs import unchanged_inputs
from diffusion.config import Config, load
from diffusion.layout import RUNS, home
from flows.run_lock import join_run


@contextmanager
def enter_stage(stage: str) -> Iterator[None]:
    """Check params.yaml, share resumable work, and keep other runs out of this folder during the block."""
    with unchanged_inputs(stage):
        load()  # no stage begins if a later one would refuse its section
        share_runs()
        with join_run():
            yield


def share_runs() -> None:
    """Link runs/ to the main checkout in a temporary folder of `dvc exp run`: the work is shared."""
    here = Path.cwd()
    main = home(here)
    if main == here:
        return
    (main / RUNS).mkdir(exist_ok=True)
    with suppress(FileExistsError):  # another stage made it
        RUNS.symlink_to(main / RUNS, target_is_directory=True)


def preflight(stage: str) -> Config:
    """Check a stage's inputs, and return the configuration, which only observers use."""
    from diffusion.check import preflight as iter_preflight  # it needs torch, which some stages do not

    config = load()
    for finding in iter_preflight(config, stage):
        remedy = f" ({finding.remedy})" if finding.remedy else ""
        typer.echo(f"{finding.subject}: {finding.message}{remedy}", err=True)
    return config
