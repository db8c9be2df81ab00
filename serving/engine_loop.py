"""An engine driven from an event loop: forward passes in a thread, requests join between passes."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from diffusion.engine.engine import Engine, ForwardPass
from diffusion.engine.job import ChunkStep, CustomTrajectory, Job
from diffusion.process.denoiser import Condition
from diffusion.protocol.settings import SampleSettings
from diffusion.system.errors import DiffctlError

MAX_QUEUED_STEPS = 8  # a slow client gets fewer step events


class StoppedError(DiffctlError):
    """The engine stopped before the images were finished."""


class PendingImages:
    """A job of the engine: `images` is the future of its result.

    `steps` receives every `every`-th step of its images, none for 0, and None at the end.
    """

    def __init__(self, job: Job, every: int = 0) -> None:
        self.job, self._every = job, every
        self.images: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        self.steps: asyncio.Queue[ChunkStep | None] = asyncio.Queue()

    def add_step(self, stepped: ChunkStep) -> None:
        """Queue a step if it was requested and the queue has room."""
        step = stepped.step
        requested = self._every and step.done % self._every == 0 and step.done < step.total
        if requested and self.steps.qsize() < MAX_QUEUED_STEPS:
            self.steps.put_nowait(stepped)

    def finish(self) -> None:
        """Set the result of the future: the images, the error, or StoppedError without either."""
        if self.images.done():
            return
        if self.job.images is not None:
            self.images.set_result(self.job.images)
        else:
            stopped = StoppedError("the server stopped before these images were finished")
            self.images.set_exception(self.job.error or stopped)
            self.images.exception()  # marks it as retrieved, in case it is never awaited
        self.steps.put_nowait(None)


class EngineLoop:
    """Runs an engine while it has jobs. All but the forward passes runs in the event loop that creates it."""

    def __init__(self, engine: Engine, on_pass: Callable[[ForwardPass], None]) -> None:
        self.engine = engine
        self._on_pass = on_pass
        self._pending: dict[Job, PendingImages] = {}
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="passes")
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())
        self._task.add_done_callback(self._cancel_all)

    def submit(
        self,
        settings: SampleSettings,
        indices: Sequence[int],
        condition: Condition,
        every: int = 0,
        trajectory: CustomTrajectory | None = None,
    ) -> PendingImages:
        """Queue images with an event every `every` steps; raise UsageError and Full as `Engine.add`."""
        pending = PendingImages(self.engine.add(settings, indices, condition, trajectory), every)
        self._pending[pending.job] = pending
        self._wake.set()
        return pending

    def cancel(self, pending: PendingImages) -> None:
        """Drop the images; without effect if they are finished."""
        self.engine.cancel(pending.job)
        self._pending.pop(pending.job, None)
        pending.finish()

    @property
    def is_running(self) -> bool:
        """Whether it takes jobs: not after `stop` or an error of the engine."""
        return not self._task.done()

    async def close(self) -> None:
        """Finish all jobs, then stop."""
        while self._pending:
            await asyncio.wait([pending.images for pending in self._pending.values()])
        await self.stop()

    async def stop(self) -> None:
        """Stop after the current pass; the futures of unfinished jobs get StoppedError."""
        self._stopping = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)
        self.engine.close()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._loop.run_in_executor(self._thread, self._run_passes)

    def _run_passes(self) -> None:
        """Run passes in the thread while there are jobs; no pass waits for the event loop."""
        while self.engine.jobs and not self._stopping:
            self._loop.call_soon_threadsafe(self._publish, self.engine.step())

    def _publish(self, done: ForwardPass) -> None:
        self._on_pass(done)
        for stepped in done.steps:
            if (pending := self._pending.get(stepped.job)) is not None:
                pending.add_step(stepped)
        for job in done.ended:
            if (pending := self._pending.pop(job, None)) is not None:
                pending.finish()

    def _cancel_all(self, task: asyncio.Task[None]) -> None:
        """Cancel what is left after the task has ended, and log an error of the engine."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "the engine failed", "exception": error})
        for pending in list(self._pending.values()):
            self.cancel(pending)
