"""What happened, told to Prefect, whose automations may start a run of it."""

from diffusion.system.errors import TemporaryError
from flows.prefect_server.temporary_server import is_healthy, quiet_client
from tracking.connectivity import redact_uri

DATA_CHANGED = "diffctl.data-changed"


def emit_data_changed(url: str, data: str) -> None:
    """Tell the server at `url` that the data set of this name has changed; TemporaryError when it is away.

    Prefect's client sends an event without an answer: that it came is seen on the page of events.
    """
    if not is_healthy(url, timeout=10):
        raise TemporaryError(f"no Prefect server answers at {redact_uri(url)}: try again when it does")
    with quiet_client(url):  # which waits until it is sent
        from prefect.events import emit_event

        resource = {"prefect.resource.id": f"diffctl.data.{data}", "prefect.resource.name": data}
        emit_event(DATA_CHANGED, resource)
