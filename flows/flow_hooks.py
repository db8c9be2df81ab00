"""A flow that is watched in Prefect: named, its output in its log, its progress told, its cancellation heard.

Prefect's worker ends a run that is cancelled, but no longer once the server was away for half a minute, and
nobody does of a run without a worker: so a flow asks for itself.
"""

import asyncio
import logging
import os
import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect import State, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run, task_run
from prefect.states import Cancelled

from diffusion.config import load
from diffusion.system.errors import DiffctlError, Interrupted
from diffusion.system.signals import interrupt_on_signal
from flows.dvc_stage import Write
from flows.output_relay import echo, plain_line
from flows.prefect_server.prefect_settings import environment
from flows.run_lock import FLOW_RUN
from flows.sweep_cells import PARENT

LOOK_SECONDS = 5.0  # between two looks at the run's state, and two tellings of progress
PROGRESS = re.compile(r"(?P<label>\S.*?) (?P<done>[\d,]+)/(?P<total>[\d,]+)(?: · .*)?")
CANCELLED_SIGNAL = 15  # a cancellation is what SIGTERM is


def run_name() -> str:
    """What a run is called: when it began, its data and its commit, with a + where that is edited."""
    words = [f"{datetime.now(UTC):%Y-%m-%d %H:%M}"]
    with suppress(DiffctlError):  # which the run itself tells
        words.append(load().data.name)
    commit = _git("rev-parse", "--short", "HEAD")
    if commit:
        edited = "+" * bool(_git("status", "--porcelain", "--untracked-files=no"))
        words.append(commit + edited)
    return " ".join(words)


def _git(*arguments: str) -> str:
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    return ""


class FlowMonitor:
    """What is known of a flow while it is at work: what stopped it, and how far each step is."""

    def __init__(self, flow_run: UUID) -> None:
        self.flow_run = flow_run
        self.stopped: Interrupted | None = None
        self.progress: dict[str, tuple[str, float]] = {}  # by step: words, and percent
        self._artifacts: dict[str, UUID] = {}
        self._told: dict[str, float] = {}
        self._task = asyncio.current_task()

    def writer(self, name: str) -> Write:
        """What takes a step's output: whole lines to the run's log, and all of it to a person's terminal."""
        logger = get_run_logger()
        by_worker = FLOW_RUN in os.environ

        def write(text: str) -> None:
            if not by_worker:
                echo(text)
            for line in map(plain_line, text.splitlines()):
                if match := PROGRESS.fullmatch(line):
                    self._note(name, match)
                if line and (by_worker or not text.startswith(("\r", "\x1b"))):
                    logger.log(logging.INFO, line)

        return write

    def _note(self, name: str, match: re.Match[str]) -> None:
        done, total = (int(match[part].replace(",", "")) for part in ("done", "total"))
        if total:
            words = f"{match['label']} {match['done']} of {match['total']}"
            self.progress[name] = words, min(100.0, 100 * done / total)

    async def attend(self) -> None:
        """Look, again and again, whether the run was cancelled, and tell how far it is."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            with suppress(Exception):  # a server that is away, hangs or refuses: the work goes on
                if await self._is_cancelled():
                    self.stopped = Interrupted(
                        "cancelled in Prefect; what was done is saved", CANCELLED_SIGNAL
                    )
                    assert self._task is not None
                    self._task.cancel()
                    return
                await self.tell_progress()

    async def _is_cancelled(self) -> bool:
        from prefect.client.orchestration import get_client

        async with get_client() as client:
            state = (await client.read_flow_run(self.flow_run)).state
        return state is not None and (state.is_cancelling() or state.is_cancelled())

    async def tell_progress(self) -> None:
        """Write an artifact a step that has progress, or bring it up to date."""
        from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact

        for name, (words, percent) in list(self.progress.items()):
            if self._told.get(name) == percent:
                continue
            if name in self._artifacts:
                await aupdate_progress_artifact(self._artifacts[name], percent, description=words)
            else:
                key = f"progress-{name}"
                self._artifacts[name] = await acreate_progress_artifact(percent, key, description=words)
            self._told[name] = percent


@asynccontextmanager
async def monitor_flow() -> AsyncIterator[FlowMonitor]:
    """Watch over the flow that this is called in, until the block ends.

    A signal, or a cancellation in Prefect, leaves the block as Interrupted, once what it ran has ended.
    """
    watch = FlowMonitor(UUID(str(flow_run.id)))
    attending = asyncio.create_task(watch.attend())
    try:
        with interrupt_on_signal():  # Prefect has put a handler of its own in place
            yield watch
    except asyncio.CancelledError:
        if watch.stopped is None:
            raise
        _go_on()
        raise watch.stopped from None
    finally:
        attending.cancel()
        with suppress(asyncio.CancelledError):
            await attending
        with suppress(Exception):
            await asyncio.wait_for(watch.tell_progress(), LOOK_SECONDS)


def _go_on() -> None:
    """The cancellation was our own: what comes after it is awaited as usual."""
    current = asyncio.current_task()
    if current is not None:
        current.uncancel()


def cancelled_state(stop: Interrupted) -> State:
    """The final state of a flow that a stop ended."""
    return Cancelled(message=str(stop), data=stop)


Work = Callable[..., Awaitable[Any]]


def as_task(watch: FlowMonitor, work: Work, **options: Any) -> Work:
    """The work as a Prefect task of a watched flow; one that is stopped is Cancelled, not failed.

    It is called with the task's name, which its output is written under, and what else the work takes. Raises
    what the work raises.
    """

    async def supervised(name: str, *arguments: Any) -> Any:
        try:
            with environment({PARENT: str(task_run.id)}):
                return await work(name, *arguments, watch.writer(name))
        except Interrupted as stop:
            watch.stopped = stop
        except asyncio.CancelledError:
            if watch.stopped is None:
                raise
            _go_on()
        return cancelled_state(watch.stopped)

    made: Any = task(supervised, task_run_name="{name}", cache_policy=NO_CACHE, **options)  # type: ignore[call-overload]

    async def call(name: str, *arguments: Any) -> Any:
        state: State = await made(name, *arguments, return_state=True)
        if watch.stopped is not None:
            raise watch.stopped
        return await state.aresult()

    return call


class _NoError(logging.Filter):
    """A run that was stopped as asked is no error in the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.ERROR and "Finished in state Cancelled" in record.getMessage():
            record.levelno, record.levelname = logging.WARNING, logging.getLevelName(logging.WARNING)
        return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_NoError())
