"""The pipeline as a Prefect flow: a task a step. `flows.run` is the way in for a person, this for a worker.

Tasks pass names, never arrays, and Prefect keeps no results: DVC alone decides what is stale.
"""

from contextvars import ContextVar
from typing import Any

from prefect import State, Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.states import Cancelled

from diffusion.system.errors import Interrupted
from diffusion.system.signals import ended_by_signal
from flows.dvc import StageFailed
from flows.steps import do_steps, step
from flows.terminal import say
from tracking.reach import MlflowError, MlflowRefused

RETRY_DELAYS = [5.0, 20.0]

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


@flow(name="pipeline")
async def pipeline(
    push: bool = False,
    fresh: bool = False,
    keep: bool = False,
    retry_delays: list[float] = RETRY_DELAYS,
) -> State | None:
    """From data to a registered model.

    `push` sends what was made to the DVC remote, `fresh` trains and samples from nothing, `keep` goes on with
    a training of this configuration by other code, `retry_delays` are the seconds before each new try of a
    step whose work failed.
    """
    supervised = task(  # type: ignore[call-overload]  # a function and options at once, which works
        step,
        task_run_name="{name}",
        cache_policy=NO_CACHE,
        retries=len(retry_delays),
        retry_delay_seconds=retry_delays,
        retry_condition_fn=worth_a_retry,
    )
    done = done_steps.get({})
    try:
        with ended_by_signal():  # Prefect has put a handler of its own in place
            await do_steps(supervised, done, push=push, fresh=fresh, keep=keep)
    except Interrupted as stop:
        return Cancelled(message=str(stop), data=stop)
    finally:
        for name, said in done.items():
            get_run_logger().info("%s: %s", name, said or "done")
    return None
