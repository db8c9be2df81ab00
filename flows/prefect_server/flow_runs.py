"""Flow runs of a Prefect server: list unfinished ones, and free the slots of runs stuck in Pending."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from diffusion.system.errors import TemporaryError
from flows.prefect_server.client import api_client
from flows.prefect_server.local_servers import prefect_url
from tracking.connectivity import redact_uri

if TYPE_CHECKING:
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import FlowRun

MAX_RUNS = 20  # listed, the next first
UNFINISHED = ("RUNNING", "CANCELLING", "PENDING", "PAUSED", "SCHEDULED")
REASON = "A worker took this run and never began it; `diffctl runs reap` freed its slot."


@dataclass(frozen=True)
class QueuedRun:
    """An unfinished run: its deployment, if any, its state, and when it began or is due, in UTC."""

    name: str
    deployment: str | None
    state: str
    time: str
    flow_run: str


@dataclass(frozen=True)
class ReapedRun:
    """A run of a deployment that was Pending for `seconds` and is Crashed now."""

    name: str
    flow_run: str
    seconds: float


def queued_runs(url: str) -> list[QueuedRun]:
    """Return the unfinished runs of the server at `url`, in the order in which they are due.

    Raise UsageError if it requires another password, TemporaryError if it fails.
    """
    with api_client(url, _unavailable(url)) as client:
        from prefect.client.schemas.sorting import FlowRunSort

        runs = client.read_flow_runs(
            flow_run_filter=_in_states(UNFINISHED), sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=MAX_RUNS
        )
        names = {one.id: one.name for one in client.read_deployments(limit=200)}
    return [_describe(run, names.get(run.deployment_id) if run.deployment_id else None) for run in runs]


def reap_pending_runs(seconds: float) -> list[ReapedRun]:
    """Set runs of deployments that were Pending for longer than `seconds` to Crashed, to free their slots.

    Return an empty list if no server is known; raise TemporaryError if it does not answer.
    """
    url = prefect_url()
    if url is None:
        return []
    reaped = []
    with api_client(url, _unavailable(url)) as client:
        from prefect.states import Crashed

        for run in client.read_flow_runs(flow_run_filter=_in_states(["PENDING"])):
            waited = datetime.now(UTC) - run.state.timestamp if run.state else timedelta()
            if run.deployment_id is not None and waited.total_seconds() >= seconds:
                client.set_flow_run_state(run.id, Crashed(message=REASON))
                reaped.append(ReapedRun(run.name, str(run.id), waited.total_seconds()))
    return reaped


def _unavailable(url: str) -> Callable[[str], TemporaryError]:
    return lambda reason: TemporaryError(f"Prefect at {redact_uri(url)} does not list its runs ({reason})")


def _in_states(names: Iterable[str]) -> "FlowRunFilter":
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    types = FlowRunFilterStateType(any_=[StateType(name) for name in names])
    return FlowRunFilter(state=FlowRunFilterState(type=types))


def _describe(run: "FlowRun", deployment: str | None) -> QueuedRun:
    moment = run.start_time or run.expected_start_time
    return QueuedRun(
        name=run.name,
        deployment=deployment,
        state=(run.state.name if run.state else None) or "unknown",
        time=moment.strftime("%Y-%m-%d %H:%M") if moment else "",
        flow_run=str(run.id),
    )
