"""What a Prefect server has to do: the runs at work, those that wait and those to come."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.prefect_server.temporary_server import auth_error, quiet_client
from tracking.connectivity import redact_uri

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

MOST = 20  # runs that are told of, the next first


@dataclass(frozen=True)
class QueuedRun:
    """A run: its flow's deployment if it has one, its state, and when it began or is due, in UTC."""

    name: str
    deployment: str | None
    state: str
    time: str
    flow_run: str


def queued_runs(url: str) -> list[QueuedRun]:
    """The runs of the server at `url` that have not ended, in the order in which they are due.

    UsageError when it wants another password; TemporaryError when it fails.
    """
    import httpx

    from diffusion.system.errors import TemporaryError

    with quiet_client(url):
        from prefect.exceptions import PrefectException

        try:
            return _ask()
        except (httpx.HTTPError, PrefectException) as error:
            if kept_out := auth_error(url, error):
                raise kept_out from None
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TemporaryError(
                f"Prefect at {redact_uri(url)} does not tell what is queued ({why})"
            ) from None


def _ask() -> list[QueuedRun]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    unfinished = [
        StateType.RUNNING,
        StateType.CANCELLING,
        StateType.PENDING,
        StateType.PAUSED,
        StateType.SCHEDULED,
    ]
    chosen = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=unfinished)))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_run_filter=chosen, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=MOST
        )
        deployments = {one.id: one.name for one in client.read_deployments(limit=200)}
    return [_told(run, deployments.get(run.deployment_id) if run.deployment_id else None) for run in runs]


def _told(run: "FlowRun", deployment: str | None) -> QueuedRun:
    moment = run.start_time or run.expected_start_time
    return QueuedRun(
        name=run.name,
        deployment=deployment,
        state=(run.state.name if run.state else None) or "unknown",
        time=moment.strftime("%Y-%m-%d %H:%M") if moment else "",
        flow_run=str(run.id),
    )
