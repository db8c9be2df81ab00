"""Hooks of the flows: names of runs, logs, progress artifacts, and cancellation.

A worker ends a cancelled run, but no longer after the server was away for half a minute, and a run without a
worker is never ended. So each flow polls its own state.
"""

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import State, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run, task_run
from prefect.states import Cancelled
from rich.console import Console

from diffusion.config import load
from diffusion.system.errors import DiffctlError, Interrupted
from diffusion.system.signals import interrupt_on_signal
from flows.dvc_stage import Write
from flows.output_relay import echo, plain_line
from flows.run_lock import FLOW_RUN, environment
from flows.sweep_cells import PARENT
from tracking.keys import GIT_COMMIT, GIT_DIRTY, git_tags

POLL_SECONDS = 5.0  # between polls of the run's state and updates of progress
PROGRESS = re.compile(r"(?P<label>\S.*?) (?P<done>[\d,]+)/(?P<total>[\d,]+)(?: · .*)?")
CANCELLED_SIGNAL = 15  # a cancellation counts as SIGTERM


def run_name() -> str:
    """Return the name of a run: its start time, data set and commit, with a + if there are edits."""
    words = [f"{datetime.now(UTC):%Y-%m-%d %H:%M}"]
    with suppress(DiffctlError):  # the run itself reports it
        words.append(load().data.name)
    if tags := git_tags(Path()):
        words.append(tags[GIT_COMMIT][:7] + "+" * (tags[GIT_DIRTY] == "true"))
    return " ".join(words)


class FlowMonitor:
    """The state of a running flow: what stopped it, and the progress of each step."""

    def __init__(self, flow_run: UUID) -> None:
        self.flow_run = flow_run
        self.stopped: Interrupted | None = None
        self.progress: dict[str, tuple[str, float]] = {}  # by step: text and percent
        self._artifacts: dict[str, UUID] = {}
        self._published: dict[str, float] = {}
        self._task = asyncio.current_task()

    def writer(self, name: str) -> Write:
        """Return a function for a step's output: full lines go to the run's log, all of it to a terminal."""
        logger = get_run_logger()
        by_worker = FLOW_RUN in os.environ

        def write(text: str) -> None:
            if not by_worker:
                echo(text)
            for line in map(plain_line, text.splitlines()):
                if match := PROGRESS.fullmatch(line):
                    done, total = (int(match[part].replace(",", "")) for part in ("done", "total"))
                    words = f"{match['label']} {match['done']} of {match['total']}"
                    self.progress[name] = words, min(100.0, 100 * done / max(total, 1))
                if line and (by_worker or not text.startswith(("\r", "\x1b"))):
                    logger.log(logging.INFO, line)

        return write

    async def poll(self) -> None:
        """Poll until the run is cancelled, and publish progress."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            with suppress(Exception):  # the work continues if the server fails
                if await self._is_cancelled():
                    self.stopped = Interrupted("cancelled in Prefect; finished work stays", CANCELLED_SIGNAL)
                    assert self._task is not None
                    self._task.cancel()
                    return
                await self.publish_progress()

    async def _is_cancelled(self) -> bool:
        from prefect.client.orchestration import get_client

        async with get_client() as client:
            state = (await client.read_flow_run(self.flow_run)).state
        return state is not None and (state.is_cancelling() or state.is_cancelled())

    async def publish_progress(self) -> None:
        """Create or update the progress artifact of each step that has new progress."""
        from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact

        for name, (words, percent) in list(self.progress.items()):
            if name not in self._artifacts:
                key = f"progress-{name}"
                self._artifacts[name] = await acreate_progress_artifact(percent, key, description=words)
            elif self._published.get(name) != percent:
                await aupdate_progress_artifact(self._artifacts[name], percent, description=words)
            self._published[name] = percent


@asynccontextmanager
async def monitor_flow() -> AsyncIterator[FlowMonitor]:
    """Monitor the current flow; raise Interrupted after a signal or a cancellation in Prefect."""
    monitor = FlowMonitor(UUID(str(flow_run.id)))
    polling = asyncio.create_task(monitor.poll())
    try:
        with interrupt_on_signal():  # Prefect has installed its own handler
            yield monitor
    except asyncio.CancelledError:
        if monitor.stopped is None:
            raise
        _uncancel()
        raise monitor.stopped from None
    finally:
        polling.cancel()
        with suppress(asyncio.CancelledError):
            await polling
        with suppress(Exception):
            await asyncio.wait_for(monitor.publish_progress(), POLL_SECONDS)


def _uncancel() -> None:
    """Clear our own cancellation of the current task, so that later awaits work."""
    current = asyncio.current_task()
    if current is not None:
        current.uncancel()


def cancelled_state(stop: Interrupted) -> State:
    """Return the final state of a stopped flow."""
    return Cancelled(message=str(stop), data=stop)


Work = Callable[..., Awaitable[Any]]


def as_task(monitor: FlowMonitor, work: Work, **options: Any) -> Work:
    """Return the work as a Prefect task of a monitored flow; if stopped, its state is Cancelled, not Failed.

    The first argument is the task's name, under which its output is logged. It raises what the work raises.
    """

    async def supervised(name: str, *arguments: Any) -> Any:
        try:
            with environment({PARENT: str(task_run.id)}):
                return await work(name, *arguments, monitor.writer(name))
        except Interrupted as stop:
            monitor.stopped = stop
        except asyncio.CancelledError:
            if monitor.stopped is None:
                raise
            _uncancel()
        return cancelled_state(monitor.stopped)

    made: Any = task(supervised, task_run_name="{name}", cache_policy=NO_CACHE, **options)  # type: ignore[call-overload]

    async def call(name: str, *arguments: Any) -> Any:
        state: State = await made(name, *arguments, return_state=True)
        if monitor.stopped is not None:
            raise monitor.stopped
        return await state.aresult()

    return call


def _discard_output(console: Console) -> None:
    """Discard further output to the console's file, where rich would end the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), console.file.fileno())


# Prefect logs through rich. The pipe of a run breaks if its worker dies, and the run can still finish.
Console.on_broken_pipe = _discard_output  # type: ignore[assignment,method-assign]
