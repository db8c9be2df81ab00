"""What is done with models that are there: the sweep and the evaluate deployments, for a worker.

Each is a command of `diffctl` in a process of its own, supervised as a stage is, once data and reference are
up to date.
"""

import sys
from collections.abc import Iterator
from typing import Annotated

from prefect import State, flow
from pydantic import Field

from diffusion.layout import PREPARED
from diffusion.protocol.grid import AXES, written
from diffusion.protocol.settings import SweepConfig
from diffusion.system.errors import Interrupted
from diffusion.system.limits import MOST_COUNT, MOST_PATH
from flows.dvc import Write, reproduce, supervise
from flows.steps import ask_mlflow
from flows.watched import as_task, cancelled, run_name, watched

CHAMPION, RUN = "champion", "run:"

NumImages = Annotated[int, Field(ge=2, le=MOST_COUNT)]
PathText = Annotated[str, Field(min_length=1, max_length=MOST_PATH)]


@flow(name="sweep-champion", flow_run_name=run_name)
async def sweep_champion(grid: SweepConfig, num_images: NumImages | None = None) -> State | None:
    """Sample and score the champion over a grid; nothing is trained.

    Args:
        grid: The values of each axis; each combination of them is a cell.
        num_images: Images a cell; where it is left out, as in params.yaml.
    """
    return await _with_reference("sweep", ["sweep", "--champion", *_options(grid, num_images)])


@flow(name="evaluate", flow_run_name=run_name)
async def evaluate(
    images: PathText = CHAMPION, against: PathText = str(PREPARED), num_images: NumImages | None = None
) -> State | None:
    """Score images against real ones.

    Args:
        images: "champion", "run:" and an MLflow run's id or name, or a path of the worker's machine.
        against: The real images, where `images` is a path; a model is scored against data/reference.
        num_images: Images a cell of a model; where it is left out, as in params.yaml.
    """
    if images == CHAMPION:
        command = ["sweep", "--champion", *_options(None, num_images)]
    elif images.startswith(RUN):
        command = ["sweep", "--run-id", images.removeprefix(RUN), *_options(None, num_images)]
    else:
        command = ["evaluate", images, "--against", against]
    return await _with_reference("evaluate", command)


def _options(grid: SweepConfig | None, num_images: int | None) -> Iterator[str]:
    """The command line's options for a grid, of which each axis is one."""
    for axis in AXES if grid is not None else ():
        if values := getattr(grid, axis):
            yield from (f"--{axis.replace('_', '-')}", ",".join(map(written, values)))
    if num_images is not None:
        yield from ("--num-images", str(num_images))


async def _with_reference(name: str, arguments: list[str]) -> State | None:
    """Bring data and reference up to date, then run the command of `diffctl`."""
    ask_mlflow()

    async def stage(step: str, write: Write) -> None:
        await reproduce(step, write=write)

    async def command(step: str, write: Write) -> None:
        await supervise(step, [sys.executable, "-m", "cli.entry", *arguments], write)

    try:
        async with watched() as watch:
            for step in ("data", "reference"):
                await as_task(watch, stage)(step)
            await as_task(watch, command)(name)
    except Interrupted as stop:
        return cancelled(stop)
    return None
