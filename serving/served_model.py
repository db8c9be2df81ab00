"""A served model: its weights on the device, and an engine that an event loop drives.

Forward passes run in a thread; requests join between passes.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffusion.analysis.image_inputs import edit_condition
from diffusion.choice.selection import scores_of_cells
from diffusion.engine.engine import Engine
from diffusion.engine.job import ChunkStep, ForwardPass, Job
from diffusion.images.pixels import to_model, to_nchw
from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Condition
from diffusion.protocol.option_tables import refuse_idle
from diffusion.protocol.resolution import best_settings, resolve_settings, settings_of
from diffusion.protocol.scores_document import CellScores
from diffusion.protocol.settings import SampleSettings, base_settings
from diffusion.sample.conditions import image_condition
from diffusion.sample.guides import Guides, check_served_guide
from diffusion.sample.sampler import CustomTrajectory
from diffusion.sample.sampling_steps import count_nfe
from diffusion.system.errors import DiffctlError, UsageError
from serving.encoded_pictures import decode_base64
from serving.model_source import PublishedModel
from serving.schemas import ModelCard, ModelRef, SampleRequest, ServeConfig, SettingsRequest, check_count

MAX_QUEUED_STEPS = 8  # a slow client gets fewer step events


class StoppedError(DiffctlError):
    """The engine stopped before the images were finished."""


class PendingImages:
    """A job of the engine: `images` is the future of its result.

    `steps` receives every `every`-th step of its images, none for 0, and None at the end.
    """

    def __init__(self, job: Job, every: int = 0) -> None:
        self.job, self._every = job, every
        self.about: dict[str, Any] = {}  # further metadata of the response
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


class ServedModel:
    """A model with its engine, in a running event loop."""

    def __init__(
        self,
        published: PublishedModel,
        loaded: LoadedModel,
        device: torch.device,
        config: ServeConfig,
        on_pass: Callable[[ForwardPass], None],
        guides: Guides,
    ) -> None:
        self.published, self.config, self.artefact = published, config, loaded.artefact
        self._loaded, self._guides, self.device = loaded, guides, device
        self.ref = ModelRef(
            name=published.name, version=published.version, sha256=loaded.artefact.model_sha256
        )
        scores = published.scores
        self.scores = None if scores is None else scores_of_cells(scores, self._has_networks)
        self.loop = EngineLoop(Engine(loaded, device, config.rows, config.queue, guides), on_pass)

    @property
    def guide(self) -> str | None:
        """The text of its guide, that of the best cell; None without one."""
        scores = self.published.scores
        return None if scores is None or self.published.files.guide is None else best_settings(scores).guide

    def _has_networks(self, cell: CellScores, name: str) -> bool:
        """Return whether the server has loaded what guides this cell: that of the best cell."""
        settings = settings_of(cell, name)
        needed = (settings.needs_guide, settings.has_classifier, settings.base is not None)
        loaded = (settings.guide == self.guide, self._guides.classifier, self._guides.base)
        return all(bool(there) or not is_needed for is_needed, there in zip(needed, loaded, strict=True))

    def base_nfe(self, settings: SampleSettings) -> int:
        """Return the NFE of the image that a cascade enlarges; 0 without a base model."""
        base = self._guides.base
        own = None if base is None else base_settings(settings, base.artefact.process.schedule)
        return 0 if base is None or own is None else count_nfe(own, base.artefact.process)

    def resolve(self, request: SettingsRequest, *, best_cell: bool = True) -> SampleSettings:
        """Return the settings of a request, by default with those of the best cell.

        UsageError if they do not fit the model or the limits.
        """
        given = {**request.options, "seed": request.seed}
        schedule, budget = self.artefact.process.schedule, getattr(request, "budget", None)
        settings = resolve_settings(
            schedule, given, self.scores, budget=budget, best_cell=best_cell, where="the request"
        ).settings
        if getattr(request, "low_res", None) is not None:  # it is used instead of a base model's images
            settings = settings.model_copy(update={"base": None})
        self.check(request, settings)
        return settings

    def check(self, request: SettingsRequest, settings: SampleSettings) -> None:
        """Raise UsageError if the settings of a request have idle options or exceed the limits."""
        refuse_idle(request.options, settings)
        check_count(len(request.image_indices), self.config)
        if settings.steps > self.config.steps:
            raise UsageError(f"{settings.steps} steps are too many: ask for {self.config.steps} at most")
        check_served_guide(settings, self.guide, self.ref.name)

    def edit_condition(self, settings: SampleSettings, count: int, wanted: str | int | None) -> Condition:
        """Return the condition of pictures to edit, of unknown classes unless one is given."""
        return edit_condition(self._loaded, self._guides, settings, [None] * count, wanted)

    def submit(self, request: SampleRequest, every: int = 0) -> PendingImages:
        """Queue the images of a request; raise UsageError if it does not fit, Full if the queue is full."""
        settings, indices, guides = self.resolve(request), list(request.image_indices), self._guides
        if (low_res := self._low_res(request, len(indices))) is not None:
            guides = guides._replace(real=None)
        condition = image_condition(self._loaded, settings, indices, guides, request.class_name)
        if low_res is not None:
            condition = replace(condition, low_res=low_res)
        return self.loop.submit(settings, indices, condition, every)

    def _low_res(self, request: SampleRequest, count: int) -> Tensor | None:
        """Return the low-resolution images of a request; UsageError if the model takes no such ones."""
        if request.low_res is None:
            return None
        spec, given = self.artefact.network, request.low_res
        if spec.low_res_size is None:
            raise UsageError(f"{self.ref.name} enlarges no images: leave low_res out")
        if len(given) not in (1, count):
            raise UsageError(
                f"low_res has {len(given)} pictures for {count} images: give one, or one for each"
            )
        pictures = [decode_base64(text, "low_res", spec.in_channels, spec.low_res_size) for text in given]
        return to_model(to_nchw(np.stack(pictures))).expand(count, -1, -1, -1)

    def describe(self, pending: PendingImages) -> dict[str, Any]:
        """Return the metadata of images in a response."""
        job, labels = pending.job, pending.job.condition.labels
        return {
            "model": self.ref,
            "settings": job.settings.model_dump(mode="json"),
            "nfe": job.nfe,
            "indices": list(job.indices),
            "labels": None if labels is None else labels.tolist(),
            **pending.about,
        }

    def card(self, state: Literal["serving", "draining"]) -> ModelCard:
        """Return the description of the model for /v1/models."""
        scores = self.scores
        usual = resolve_settings(self.artefact.process.schedule, {}, scores).settings
        chosen = [(one, scores.cells[one.cell]) for one in scores.front] if scores else []
        return ModelCard(
            model=self.ref,
            state=state,
            card=self.artefact.model_dump(mode="json", exclude={"code", "train"}),
            usual=usual.model_dump(mode="json"),
            front=[
                {
                    "cell": one.cell,
                    "nfe": one.nfe,
                    "distance": cell.scores[cell.spec.distance],
                    "card": cell.card,
                }
                for one, cell in chosen
            ],
            limits={"images": self.config.max_images, "steps": self.config.steps},
        )
