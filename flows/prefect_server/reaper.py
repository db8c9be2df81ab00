"""Runs that a worker took and never began, as when it was killed in between: they hold a slot for ever."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from diffusion.system.errors import TemporaryError
from flows.prefect_server.local_servers import prefect_url
from flows.prefect_server.temporary_server import quiet_client
from tracking.connectivity import redact_uri

WHY = "It was taken by a worker and never began; `diffctl runs reap` freed its slot."


@dataclass(frozen=True)
class ReapedRun:
    """A run of a deployment that was Pending for so many seconds, and is Crashed now."""

    name: str
    flow_run: str
    seconds: float


def reap_pending_runs(seconds: float) -> list[ReapedRun]:
    """Let the runs of deployments that were Pending for longer than this crash, so that their slots are free.

    Nothing where no Prefect server is known; TemporaryError where it does not answer.
    """
    url = prefect_url()
    if url is None:
        return []
    with quiet_client(url):
        import httpx
        from prefect.exceptions import PrefectException

        try:
            return _free(seconds)
        except (httpx.HTTPError, PrefectException) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TemporaryError(
                f"Prefect at {redact_uri(url)} does not say what is pending ({why})"
            ) from None


def _free(seconds: float) -> list[ReapedRun]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    pending = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING])))
    freed = []
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=pending):
            waited = datetime.now(UTC) - run.state.timestamp if run.state else timedelta()
            if run.deployment_id is not None and waited.total_seconds() >= seconds:
                client.set_flow_run_state(run.id, Crashed(message=WHY))
                freed.append(ReapedRun(run.name, str(run.id), waited.total_seconds()))
    return freed
