"""An engine driven from an event loop: its passes in a thread of their own, requests joining between them."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from diffusion.engine.engine import Engine, ForwardPass
from diffusion.engine.job import ChunkStep, CustomTrajectory, Job
from diffusion.process.condition import Condition
from diffusion.protocol.settings import SampleSettings

EMA_WEIGHT = 0.1  # the weight of the newest pass in what a pass takes
MAX_WAIT = 60  # seconds that anyone is told to wait
MAX_QUEUED_STEPS = 8  # steps that wait for a client to take them: to a slow one fewer are told


class PendingImages:
    """A job as its asker sees it: `made` comes to its images, or raises what ended it.

    `news` has every `every`-th step of its images, none for 0, and None at the end.
    """

    def __init__(self, job: Job, every: int = 0) -> None:
        self.job, self._every = job, every
        self.made: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        self.news: asyncio.Queue[ChunkStep | None] = asyncio.Queue()

    def tell(self, stepped: ChunkStep) -> None:
        """Tell of a step where it is asked for, unless too many wait to be taken."""
        step = stepped.step
        asked_for = self._every and step.done % self._every == 0 and step.done < step.total
        if asked_for and self.news.qsize() < MAX_QUEUED_STEPS:
            self.news.put_nowait(stepped)

    def end(self) -> None:
        """Tell what became of the job; `made` is cancelled where it came to nothing."""
        if self.made.done():
            return
        if self.job.images is not None:
            self.made.set_result(self.job.images)
        elif self.job.error is not None:
            self.made.set_exception(self.job.error)
            self.made.exception()  # whether or not anyone is left to hear it
        else:
            self.made.cancel()
        self.news.put_nowait(None)


class EngineLoop:
    """Runs an engine while there is work. All but the passes happens in the event loop that makes it."""

    def __init__(self, engine: Engine, seen: Callable[[ForwardPass], None]) -> None:
        self.engine = engine
        self._seen = seen
        self._orders: dict[Job, PendingImages] = {}
        self._wake, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._pass_seconds = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="passes")
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())
        self._task.add_done_callback(self._give_up)

    def add(
        self,
        settings: SampleSettings,
        indices: Sequence[int],
        condition: Condition,
        every: int = 0,
        course: CustomTrajectory | None = None,
    ) -> PendingImages:
        """Have these images made, told of every so many steps; UsageError and Full as `Engine.add`."""
        order = PendingImages(self.engine.add(settings, indices, condition, course), every)
        self._orders[order.job] = order
        self._idle.clear()
        self._wake.set()
        return order

    def cancel(self, order: PendingImages) -> None:
        """Nobody waits for these images any more; nothing where they are made."""
        self.engine.cancel(order.job)
        self._orders.pop(order.job, None)
        order.end()

    @property
    def is_alive(self) -> bool:
        """Whether it makes images: not after `close`, nor after a fault of its own."""
        return not self._task.done()

    @property
    def seconds_left(self) -> int:
        """For how long, about, there is work: what to tell those that do not fit."""
        return min(MAX_WAIT, max(1, math.ceil(self.engine.passes_left * self._pass_seconds)))

    async def close(self) -> None:
        """Make what is held, then end."""
        idle = asyncio.ensure_future(self._idle.wait())
        await asyncio.wait([self._task, idle], return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        await self.stop()

    async def stop(self) -> None:
        """End after the pass that is at work; whoever still waits is told so."""
        self._stopping = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)
        self.engine.close()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._loop.run_in_executor(self._thread, self._work)
            if not self._wake.is_set():
                self._idle.set()

    def _work(self) -> None:
        """Pass after pass while there is work, in the thread: no pass waits for the event loop."""
        while self.engine.jobs and not self._stopping:
            began = time.monotonic()
            done = self.engine.step()
            self._loop.call_soon_threadsafe(self._tell, done, time.monotonic() - began)

    def _give_up(self, task: asyncio.Task[None]) -> None:
        """Nobody makes what is left: whoever waits for it is told so, and a fault stands in the log."""
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "the engine failed", "exception": fault})
        for order in list(self._orders.values()):
            self.cancel(order)
        self._idle.set()

    def _tell(self, done: ForwardPass, seconds: float) -> None:
        self._pass_seconds += EMA_WEIGHT * (seconds - self._pass_seconds) if self._pass_seconds else seconds
        self._seen(done)
        for stepped in done.steps:
            if (order := self._orders.get(stepped.job)) is not None:
                order.tell(stepped)
        for job in done.ended:
            if (order := self._orders.pop(job, None)) is not None:
                order.end()
