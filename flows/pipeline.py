"""The pipeline as a Prefect flow with a task per step, and what all flows share: tasks and cancellation.

Tasks pass names, never arrays, and Prefect stores no results: DVC decides what is stale. A worker ends a
cancelled run, but no longer after the server was away for half a minute, and a run without a worker is never
ended. So each flow polls its own state.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from prefect import State, Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TaskRun
from prefect.runtime import flow_run, task_run
from prefect.states import Cancelled
from pydantic import Field

from diffusion.config import load
from diffusion.system.errors import DiffctlError, Interrupted
from diffusion.system.signals import StopRequest, interrupt_on_signal
from flows.dvc_stage import StageFailed
from flows.output_relay import echo, plain_line
from flows.pipeline_run import check_mlflow, check_options, run_step, run_steps
from flows.run_lock import FLOW_RUN, environment
from flows.run_summary import publish_summary
from flows.sweep_cells import PARENT
from tracking.connectivity import MlflowDenied, MlflowError
from tracking.keys import GIT_COMMIT, GIT_DIRTY, git_tags

RETRY_DELAYS = [5.0, 20.0]
POLL_SECONDS = 5.0  # between polls of the run's state

Delays = Annotated[list[Annotated[float, Field(ge=0, le=86_400)]], Field(max_length=20)]
Work = Callable[..., Awaitable[Any]]

# The finished steps, for a caller that continues without the server.
done_steps: ContextVar[dict[str, str | None]] = ContextVar("done_steps")


def run_name() -> str:
    """Return the name of a run: its start time, data set and commit, with a + if there are edits."""
    words = [f"{datetime.now(UTC):%Y-%m-%d %H:%M}"]
    with suppress(DiffctlError):  # the run itself reports it
        words.append(load().data.name)
    if tags := git_tags():
        words.append(tags[GIT_COMMIT][:7] + "+" * (tags[GIT_DIRTY] == "true"))
    return " ".join(words)


@flow(name="pipeline", flow_run_name=run_name)
async def pipeline(
    push: bool = False, fresh: bool = False, keep: bool = False, retry_delays: Delays = RETRY_DELAYS
) -> State | None:
    """Bring data, model, samples and scores up to date, and register the model.

    Args:
        push: Push the outputs to the DVC remote.
        fresh: Train and sample from scratch.
        keep: Resume a training of this configuration by other code.
        retry_delays: Seconds before each retry of a failed step.
    """
    done = done_steps.get({})
    check_options(push=push, fresh=fresh, keep=keep)
    check_mlflow()
    do = retried(run_step, retry_delays)
    try:
        async with stop_on_cancel():
            await run_steps(do, done, push=push, fresh=fresh, keep=keep)
        await publish_summary(done["register"] or "")
    except Interrupted as stop:
        return Cancelled(message=str(stop), data=stop)
    finally:
        for name, result in done.items():
            get_run_logger().info("%s: %s", name, result or "done")
    return None


def retried(work: Work, delays: Delays) -> Work:
    """Return the work as a task, which runs again after each delay if its failure may be transient."""
    return as_task(work, retries=len(delays), retry_delay_seconds=delays, retry_condition_fn=should_retry)


def should_retry(task: Task[Any, Any], run: TaskRun, state: State) -> bool:
    """Return whether the failure of a step may be transient: not a usage error, and not a signal."""
    error = state.data
    by_mlflow = isinstance(error, MlflowError) and not isinstance(error, MlflowDenied)
    if not (by_mlflow or (isinstance(error, StageFailed) and error.retry)):
        return False
    delay = task.retry_delay_seconds[run.run_count - 1]
    echo(f"{error}; trying again in {delay:g} s ({run.run_count} of {task.retries})\n")
    return True


@asynccontextmanager
async def stop_on_cancel() -> AsyncIterator[None]:
    """Raise Interrupted inside the block after a signal or a cancellation of the flow in Prefect."""
    with interrupt_on_signal() as stop:  # Prefect has installed its own handler
        polling = asyncio.create_task(_poll(UUID(str(flow_run.id)), stop))
        try:
            yield
        finally:
            polling.cancel()
            with suppress(asyncio.CancelledError):
                await polling


async def _poll(run_id: UUID, stop: StopRequest) -> None:
    """Request a stop, as SIGTERM does, once the run is cancelled."""
    while stop.signal is None:
        await asyncio.sleep(POLL_SECONDS)
        with suppress(Exception):  # the work continues if the server fails
            async with get_client() as client:
                state = (await client.read_flow_run(run_id)).state
            if state is not None and (state.is_cancelling() or state.is_cancelled()):
                echo("cancelled in Prefect\n")
                stop.request()


def as_task(work: Work, **options: Any) -> Work:
    """Return the work as a Prefect task, which raises what the work raises; if stopped, it is Cancelled.

    The first argument is the task's name. The work gets one further argument, a function for its output.
    """

    async def supervised(name: str, *arguments: Any) -> Any:
        try:
            with environment({PARENT: str(task_run.id)}):
                return await work(name, *arguments, _output_logger())
        except Interrupted as stop:
            return Cancelled(message=str(stop), data=stop)

    made: Any = task(supervised, task_run_name="{name}", cache_policy=NO_CACHE, **options)  # type: ignore[call-overload]

    async def call(name: str, *arguments: Any) -> Any:
        state: State = await made(name, *arguments, return_state=True)
        return await state.aresult()

    return call


def _output_logger() -> Callable[[str], object]:
    """Return a function for output: full lines go to the run's log, all of it to a terminal."""
    logger = get_run_logger()
    by_worker = FLOW_RUN in os.environ

    def write(text: str) -> None:
        if not by_worker:
            echo(text)
        for line in map(plain_line, text.splitlines()):
            if line and (by_worker or not text.startswith(("\r", "\x1b"))):
                logger.log(logging.INFO, line)

    return write
