"""Flow runs of a Prefect server: what runs, how deployments ended, and slots of runs stuck in Pending."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from diffusion.system.errors import TemporaryError
from flows.prefect_server.client import api_client
from flows.prefect_server.local_servers import prefect_url
from tracking.connectivity import redact_uri

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import FlowRun

MAX_RUNS = 20  # listed, the next first
UNFINISHED = ("RUNNING", "CANCELLING", "PENDING", "PAUSED", "SCHEDULED")
ENDED = ("COMPLETED", "FAILED", "CRASHED")  # a skipped or cancelled run says nothing about the deployment
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
class LastRun:
    """The last run of a deployment that completed or failed: its end in UTC, its state, and the reason.

    A deployment without one has empty texts.
    """

    deployment: str
    state: str
    time: str
    reason: str
    flow_run: str
    failed: bool


@dataclass(frozen=True)
class WorkerPoll:
    """A worker of a deployment's pool, and its last poll in UTC; it is online if that was not long ago."""

    pool: str
    worker: str
    time: str
    online: bool


@dataclass(frozen=True)
class PrefectStatus:
    """The unfinished runs in the order in which they are due, each deployment's last run, and the workers."""

    runs: list[QueuedRun]
    deployments: list[LastRun]
    workers: list[WorkerPoll]


@dataclass(frozen=True)
class ReapedRun:
    """A run of a deployment that was Pending for `seconds` and is Crashed now."""

    name: str
    flow_run: str
    seconds: float


def prefect_status(url: str) -> PrefectStatus:
    """Return the status of the server at `url`.

    Raise UsageError if it requires another password, TemporaryError if it fails.
    """
    with api_client(url, _unavailable(url)) as client:
        from prefect.client.schemas.sorting import FlowRunSort

        runs = client.read_flow_runs(
            flow_run_filter=_in_states(UNFINISHED), sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=MAX_RUNS
        )
        deployments = client.read_deployments(limit=200)
        names = {one.id: one.name for one in deployments}
        pools = sorted({one.work_pool_name for one in deployments if one.work_pool_name})
        last = [_last_run(client, one.id, one.name) for one in deployments]
        workers = [
            WorkerPoll(pool, one.name, _minute(one.last_heartbeat_time), one.status.value == "ONLINE")
            for pool in pools
            for one in client.read_workers_for_work_pool(pool)
        ]
    queued = [_describe(run, names.get(run.deployment_id) if run.deployment_id else None) for run in runs]
    return PrefectStatus(queued, sorted(last, key=lambda one: one.deployment), workers)


def _last_run(client: "SyncPrefectClient", deployment: "UUID", name: str) -> LastRun:
    from prefect.client.schemas.sorting import FlowRunSort

    ended = _in_states(ENDED, deployment)
    for run in client.read_flow_runs(flow_run_filter=ended, sort=FlowRunSort.END_TIME_DESC, limit=1):
        if run.state is not None:
            reason = " ".join((run.state.message or "").split())
            failed = not run.state.is_completed()
            return LastRun(name, run.state.name or "", _minute(run.end_time), reason, str(run.id), failed)
    return LastRun(name, "", "", "", "", failed=False)


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


def _in_states(names: Iterable[str], deployment: "UUID | None" = None) -> "FlowRunFilter":
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    types = filters.FlowRunFilterStateType(any_=[StateType(name) for name in names])
    only = filters.FlowRunFilterDeploymentId(any_=[deployment]) if deployment else None
    return filters.FlowRunFilter(state=filters.FlowRunFilterState(type=types), deployment_id=only)


def _describe(run: "FlowRun", deployment: str | None) -> QueuedRun:
    return QueuedRun(
        name=run.name,
        deployment=deployment,
        state=(run.state.name if run.state else None) or "unknown",
        time=_minute(run.start_time or run.expected_start_time),
        flow_run=str(run.id),
    )


def _minute(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M") if moment else ""
