"""A Prefect flow from plain code: its outcome as our exceptions, and a server that goes away survived."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from diffusion.system.signals import make_interrupted
from flows.output_relay import echo
from tracking.connectivity import redact_uri

if TYPE_CHECKING:
    from prefect import State


def run_flow(start: "Callable[[], Awaitable[State]]", url: str) -> None:
    """Run the flow that `start` gives the final state of; raises what ended it, Interrupted on a signal.

    Returns also when the server at `url` refuses or goes away, which is said: the work may not be finished
    then, and the caller goes on with what is left.
    """
    import httpx
    from prefect.exceptions import PrefectException, TerminationSignal

    try:
        asyncio.run(_outcome(start))
    except TerminationSignal as end:  # what Prefect makes of a SIGTERM
        raise make_interrupted(end.signal) from None
    except (PrefectException, httpx.HTTPError) as error:
        why = str(error) or type(error).__name__
        echo(f"the Prefect server at {redact_uri(url)} failed ({why}): going on without it\n")


async def _outcome(start: "Callable[[], Awaitable[State]]") -> None:
    from prefect.exceptions import PrefectException

    try:
        state = await start()
    except RuntimeError as error:  # of Prefect's client: a server of another major version
        raise PrefectException(str(error)) from error
    end = await state.aresult(raise_on_failure=False)
    if isinstance(end, BaseException):
        raise end
