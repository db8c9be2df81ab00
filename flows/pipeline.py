"""The pipeline as a Prefect flow with a task per step: the entrypoint of workers, and of `diffctl run`.

Tasks pass names, never arrays, and Prefect stores no results: DVC decides what is stale.
"""

from contextvars import ContextVar
from typing import Annotated, Any

from prefect import State, Task, flow, get_run_logger
from prefect.client.schemas.objects import TaskRun
from pydantic import Field

from diffusion.system.errors import Interrupted
from flows.dvc_stage import StageFailed
from flows.flow_hooks import as_task, cancelled_state, monitor_flow, run_name
from flows.output_relay import echo
from flows.pipeline_steps import check_mlflow, check_options, run_step, run_steps
from flows.run_summary import publish_summary
from tracking.connectivity import MlflowDenied, MlflowError

RETRY_DELAYS = [5.0, 20.0]

Delays = Annotated[list[Annotated[float, Field(ge=0, le=86_400)]], Field(max_length=20)]

# The finished steps, for a caller that continues without the server.
done_steps: ContextVar[dict[str, str | None]] = ContextVar("done_steps")


def should_retry(task: Task[Any, Any], run: TaskRun, state: State) -> bool:
    """Return whether the failure of a step may be transient: not a usage error, and not a signal."""
    error = state.data
    by_mlflow = isinstance(error, MlflowError) and not isinstance(error, MlflowDenied)
    if not (by_mlflow or (isinstance(error, StageFailed) and error.retry)):
        return False
    delay = task.retry_delay_seconds[run.run_count - 1]
    echo(f"{error}; trying again in {delay:g} s ({run.run_count} of {task.retries})\n")
    return True


@flow(name="pipeline", flow_run_name=run_name)
async def pipeline(
    push: bool = False,
    fresh: bool = False,
    keep: bool = False,
    retry_delays: Delays = RETRY_DELAYS,
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
    try:
        async with monitor_flow() as monitor:
            supervised = as_task(
                monitor,
                run_step,
                retries=len(retry_delays),
                retry_delay_seconds=retry_delays,
                retry_condition_fn=should_retry,
            )
            await run_steps(supervised, done, push=push, fresh=fresh, keep=keep)
        await publish_summary(done["register"] or "")
    except Interrupted as stop:
        return cancelled_state(stop)
    finally:
        for name, result in done.items():
            get_run_logger().info("%s: %s", name, result or "done")
    return None
