"""Flow runs of a Prefect server: what runs, how deployments ended, and slots of runs stuck in Pending."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.prefect_server.client import all_deployments, api_client
from flows.prefect_server.deployments import owner_tag
from flows.prefect_server.local_servers import prefect_url

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter

MAX_RUNS = 20  # listed, the next first
UNFINISHED = ("RUNNING", "CANCELLING", "PENDING", "PAUSED", "SCHEDULED")
ENDED = ("COMPLETED", "FAILED", "CRASHED")  # a skipped or cancelled run is no result
REASON = "A worker took this run and never began it; `diffctl runs reap` freed its slot."
Row = dict[str, Any]  # of `diffctl status` or `runs reap`; times are in UTC


def prefect_status(url: str) -> dict[str, list[Row]]:
    """Return this project's `runs`, `deployments` and `workers` of the server at `url`.

    Runs are the unfinished ones in the order in which they are due, also those without a deployment. A
    deployment has its pool and its last run, a worker of its pool the last poll. Raise as `api_client`.
    """
    with api_client(url) as client:
        from prefect.client.schemas.sorting import FlowRunSort

        tag = owner_tag()
        own = [one for one in all_deployments(client) if tag in one.tags]
        deployments = sorted(own, key=lambda one: one.name)
        names: dict[UUID | None, str] = {one.id: one.name for one in deployments}
        unfinished = _in_states(UNFINISHED, [one.id for one in deployments], include_undeployed=True)
        due = FlowRunSort.EXPECTED_START_TIME_ASC
        runs = client.read_flow_runs(flow_run_filter=unfinished, sort=due, limit=MAX_RUNS)
        pools = sorted({one.work_pool_name for one in deployments if one.work_pool_name})
        workers = [
            {
                "pool": pool,
                "worker": one.name,
                "time": _minute(one.last_heartbeat_time),
                "online": one.status.value == "ONLINE",
            }
            for pool in pools
            for one in client.read_workers_for_work_pool(pool)
        ]
        return {
            "runs": [
                {
                    "name": run.name,
                    "deployment": names.get(run.deployment_id),
                    "state": (run.state.name if run.state else None) or "unknown",
                    "time": _minute(run.start_time or run.expected_start_time),
                    "flow_run": str(run.id),
                }
                for run in runs
            ],
            "deployments": [
                {"deployment": one.name, "pool": one.work_pool_name or "", **_last_run(client, one.id)}
                for one in deployments
            ],
            "workers": workers,
        }


def _last_run(client: "SyncPrefectClient", deployment: UUID) -> Row:
    """Return the last run of a deployment that completed or failed; empty texts without one."""
    from prefect.client.schemas.sorting import FlowRunSort

    ended = _in_states(ENDED, [deployment])
    for run in client.read_flow_runs(flow_run_filter=ended, sort=FlowRunSort.END_TIME_DESC, limit=1):
        if run.state is not None:
            return {
                "state": run.state.name or "",
                "time": _minute(run.end_time),
                "reason": " ".join((run.state.message or "").split()),
                "flow_run": str(run.id),
                "failed": not run.state.is_completed(),
            }
    return {"state": "", "time": "", "reason": "", "flow_run": "", "failed": False}


def reap_pending_runs(seconds: float) -> list[Row]:
    """Set runs of this project, Pending for `seconds`, to Crashed; return them. Raise as `api_client`."""
    reaped: list[Row] = []
    if (url := prefect_url()) is None:
        return reaped
    with api_client(url) as client:
        from prefect.states import Crashed

        own = owner_tag()
        for run in client.read_flow_runs(flow_run_filter=_in_states(["PENDING"])):
            waited = (datetime.now(UTC) - run.state.timestamp).total_seconds() if run.state else 0.0
            if own in run.tags and waited >= seconds:
                client.set_flow_run_state(run.id, Crashed(message=REASON))
                reaped.append({"name": run.name, "flow_run": str(run.id), "seconds": waited})
    return reaped


def _in_states(
    names: Iterable[str], deployments: list[UUID] | None = None, *, include_undeployed: bool = False
) -> "FlowRunFilter":
    """Return a filter by state and, if given, by deployment.

    `include_undeployed` adds runs without a deployment.
    """
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    only = None
    if deployments is not None:
        is_null = True if include_undeployed else None
        only = filters.FlowRunFilterDeploymentId(any_=deployments, is_null_=is_null)
        only.operator = filters.Operator.or_
    types = filters.FlowRunFilterStateType(any_=[StateType(name) for name in names])
    return filters.FlowRunFilter(state=filters.FlowRunFilterState(type=types), deployment_id=only)


def _minute(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M") if moment else ""
