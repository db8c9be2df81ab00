"""The deployments `sweep` and `evaluate`, which score existing models.

Each brings data and reference up to date, runs commands of `diffctl` as supervised processes, and publishes
a summary on the page of the flow run.
"""

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated

from prefect import State, flow
from prefect.states import Cancelled
from pydantic import Field

from diffusion.layout import EVALUATE_RUN, PREPARED, SCORES, SWEEP_RUN
from diffusion.protocol.grid import format_option
from diffusion.protocol.option_tables import AXES
from diffusion.protocol.sample_sections import SweepConfig
from diffusion.protocol.scores_document import read_scores
from diffusion.system.checksums import JsonObject, read_json
from diffusion.system.errors import Interrupted, UsageError
from diffusion.system.limits import MAX_COUNT, MAX_PATH
from diffusion.system.processes import PYTHON_MODULE
from flows.dvc_stage import Write, refresh_code, supervise
from flows.pipeline import RETRY_DELAYS, Delays, retried, run_name, stop_on_cancel
from flows.pipeline_run import check_mlflow, run_step
from flows.run_summary import evaluation_markdown, links_of_model, publish_markdown, sweep_markdown
from tracking.registry.registered_models import find_registered
from tracking.runs.run_lookup import find_run

CHAMPION, RUN = "champion", "run:"
SWEPT, IMAGES = SWEEP_RUN / SCORES.name, SWEEP_RUN / "samples"

NumImages = Annotated[int, Field(ge=2, le=MAX_COUNT)]
PathText = Annotated[str, Field(min_length=1, max_length=MAX_PATH)]

Do = Callable[[str, list[str]], Awaitable[object]]
"""Runs `diffctl` with these arguments as a task of this name."""


@flow(name="sweep-champion", flow_run_name=run_name)
async def sweep_champion(
    grid: SweepConfig, num_images: NumImages | None = None, retry_delays: Delays = RETRY_DELAYS
) -> State | None:
    """Sample and score the champion over a grid; nothing is trained.

    Args:
        grid: The values of each axis; each combination is a cell.
        num_images: Images per cell; default as in params.yaml.
        retry_delays: Seconds before each retry of a failed step.
    """

    async def work(do: Do) -> None:
        await do("sweep", ["sweep", *_model(CHAMPION), *_options(grid, num_images)])
        await publish_markdown(lambda: _swept(CHAMPION), "the champion at other settings")

    return await _with_reference(work, retry_delays)


@flow(name="evaluate", flow_run_name=run_name)
async def evaluate(
    images: PathText = CHAMPION,
    against: PathText = str(PREPARED),
    num_images: NumImages | None = None,
    retry_delays: Delays = RETRY_DELAYS,
) -> State | None:
    """Score images against real ones.

    Args:
        images: "champion", "run:" with an MLflow run's id or name, or a path on the worker's machine.
        against: The real images. A model is scored against data/reference over the grid of params.yaml; its
            best cell also against these, unless they are data/prepared.
        num_images: Images per cell of a model; default as in params.yaml.
        retry_delays: Seconds before each retry of a failed step.
    """
    of_model = images == CHAMPION or images.startswith(RUN)
    if num_images is not None and not of_model:
        raise UsageError(f"num_images applies to models, not to {images}: leave it out")
    others = Path(against).resolve() != PREPARED.resolve()
    if others and not Path(against).exists():
        raise UsageError(f"{against} does not exist: give a path on the worker's machine")

    async def work(do: Do) -> None:
        path = images
        if of_model:
            await do("sweep", ["sweep", *_model(images), *_options(None, num_images)])
            if not others:
                return await publish_markdown(lambda: _swept(images), images)
            path = str(IMAGES / read_scores(SWEPT).best.cell)
        EVALUATE_RUN.unlink(missing_ok=True)
        await do("evaluate", ["evaluate", path, "--against", against, "--out", str(EVALUATE_RUN)])

        def summary() -> str:
            evaluated = evaluation_markdown(read_json(EVALUATE_RUN, JsonObject))
            return f"{evaluated}\n{_swept(images)}" if of_model else evaluated

        return await publish_markdown(summary, f"{images} against {against}")

    return await _with_reference(work, retry_delays)


def _model(images: str) -> list[str]:
    """Return the options of `diffctl` that select the model."""
    return ["--champion"] if images == CHAMPION else ["--run-id", images.removeprefix(RUN)]


def _options(grid: SweepConfig | None, num_images: int | None) -> Iterator[str]:
    """Yield the options of `diffctl` for a grid."""
    for axis in AXES if grid is not None else ():
        if values := getattr(grid, axis):
            text = ",".join(format_option(axis, value) for value in values)
            yield from (f"--{axis.replace('_', '-')}", text)
    if num_images is not None:
        yield from ("--num-images", str(num_images))


def _swept(images: str) -> str:
    """Return the summary of the last sweep, of the model `images`."""
    document = read_scores(SWEPT)

    def links() -> Iterator[str]:
        version = find_registered(document)
        if images != CHAMPION:
            yield from links_of_model(find_run(images.removeprefix(RUN)), version)
        elif version is not None:  # the swept one: another version may be champion by now
            yield from links_of_model(find_run(version.run_id), version)

    return sweep_markdown(document, IMAGES, links())


async def _with_reference(work: Callable[[Do], Awaitable[None]], delays: Delays) -> State | None:
    """Bring data and reference up to date, then run `work`."""
    check_mlflow()

    async def command(step: str, arguments: list[str], write: Write) -> None:
        await supervise(step, [*PYTHON_MODULE, "cli.entry", *arguments], write)

    try:
        async with stop_on_cancel():
            await refresh_code()
            for step in ("data", "reference"):
                await retried(run_step, delays)(step)
            await work(retried(command, delays))
    except Interrupted as stop:
        return Cancelled(message=str(stop), data=stop)
    return None
