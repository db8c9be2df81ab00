"""Checks before and after a stage, its folder of resumable work, and the run that it belongs to."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

from cli.stages.used_inputs import unchanged_inputs
from diffusion.config import Config, load
from diffusion.data.data_config import DataConfig, preparation_changes
from diffusion.images.store import prepared_meta
from diffusion.layout import PARAMS, PREPARED, RUNS, home
from diffusion.system.errors import UsageError
from flows.run_lock import join_run


@contextmanager
def enter_stage(stage: str) -> Iterator[None]:
    """Check params.yaml, share resumable work, and keep other runs out of this folder during the block."""
    share_runs()  # before anything is written there
    with unchanged_inputs(stage):
        config = load()  # no stage begins if a later one would refuse its section
        if stage != "data":
            _refuse_other_data(config.data)
        with join_run():
            yield


def _refuse_other_data(data: DataConfig) -> None:
    """Raise UsageError if data/prepared was made with other options than those of the section `data`."""
    meta = prepared_meta()  # the stages that read them report missing or damaged data
    if meta is not None and (changes := preparation_changes(data, meta)):
        raise UsageError(
            f"{PREPARED} was made with other options than {PARAMS} has ({', '.join(changes[:3])}): correct "
            f"{PARAMS}, or run `diffctl stage data` to prepare the data again"
        )


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
