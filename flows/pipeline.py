"""The pipeline as a Prefect flow: a task a step. `flows.run` is the way in for a person, this for a worker.

Tasks pass names, never arrays, and Prefect keeps no results: DVC alone decides what is stale.
"""

from contextvars import ContextVar
from typing import Annotated, Any

from prefect import State, Task, flow, get_run_logger
from prefect.client.schemas.objects import TaskRun
from pydantic import Field

from diffusion.system.errors import Interrupted
from flows.dvc import StageFailed
from flows.steps import ask_mlflow, do_steps, refuse_impossible, step
from flows.summary import publish_summary
from flows.terminal import say
from flows.watched import as_task, cancelled, run_name, watched
from tracking.reach import MlflowError, MlflowRefused

RETRY_DELAYS = [5.0, 20.0]

Delays = Annotated[list[Annotated[float, Field(ge=0, le=86_400)]], Field(max_length=20)]

# What the flow has done, for who called it and goes on by himself when Prefect's server is gone.
done_steps: ContextVar[dict[str, str | None]] = ContextVar("done_steps")


def worth_a_retry(task: Task[Any, Any], run: TaskRun, state: State) -> bool:
    """Whether a step failed in a way that may pass: its work did, not its configuration, and nobody asked."""
    error = state.data
    by_mlflow = isinstance(error, MlflowError) and not isinstance(error, MlflowRefused)
    if not (by_mlflow or (isinstance(error, StageFailed) and error.retry)):
        return False
    delay = task.retry_delay_seconds[run.run_count - 1]
    say(f"{error}; trying again in {delay:g} s ({run.run_count} of {task.retries})\n")
    return True


@flow(name="pipeline", flow_run_name=run_name)
async def pipeline(
    push: bool = False,
    fresh: bool = False,
    keep: bool = False,
    retry_delays: Delays = RETRY_DELAYS,
) -> State | None:
    """From data to a registered model.

    Args:
        push: Send what was made to the DVC remote.
        fresh: Train and sample from nothing, whatever was saved.
        keep: Go on with a training of this configuration by other code.
        retry_delays: Seconds before each new try of a step whose work failed.
    """
    done = done_steps.get({})
    refuse_impossible(push=push, fresh=fresh, keep=keep)
    ask_mlflow()
    try:
        async with watched() as watch:
            supervised = as_task(
                watch,
                step,
                retries=len(retry_delays),
                retry_delay_seconds=retry_delays,
                retry_condition_fn=worth_a_retry,
            )
            await do_steps(supervised, done, push=push, fresh=fresh, keep=keep)
        await publish_summary(done["register"] or "")
    except Interrupted as stop:
        return cancelled(stop)
    finally:
        for name, said in done.items():
            get_run_logger().info("%s: %s", name, said or "done")
    return None
