"""The models of a server, the one that serves and a draining predecessor, and the server's metrics."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from diffusion.engine.job import ForwardPass
from diffusion.model.model_file import LoadedModel
from diffusion.sample.guides import Guides
from diffusion.sample.network_files import held_out_images
from diffusion.system.errors import reason
from serving.model_source import ModelSource, PublishedModel
from serving.schemas import ModelCard, ModelRef, ServeConfig
from serving.served_model import ServedModel

MAX_PREPARATIONS = 2  # of edits at once: the pictures of one may take 0.3 GB as float32
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server for Prometheus, in their own registry."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Counter("diffctl_requests", "Responses.", ["path", "status"], registry=own)
        text = "Time from request to end of response."
        self.seconds = Histogram("diffctl_request_seconds", text, ["path"], buckets=SECONDS, registry=own)
        self.active = Gauge("diffctl_requests_active", "Unfinished requests.", registry=own)
        self.gone = Counter("diffctl_requests_gone", "Requests with a disconnected client.", registry=own)
        self.images = Counter("diffctl_images", "Finished images.", registry=own)
        self.held = Gauge("diffctl_images_held", "Images being sampled or queued.", registry=own)
        self.rows = Histogram("diffctl_pass_rows", "Rows per forward pass.", buckets=ROWS, registry=own)
        text = "1, with the model that serves as labels."
        self.model = Gauge("diffctl_model_info", text, ["name", "version", "sha256"], registry=own)
        self.reloads = Counter("diffctl_reloads", "Model changes by outcome.", ["outcome"], registry=own)

    def set_model(self, model: ModelRef) -> None:
        """Set the model that serves."""
        self.model.clear()
        version = "" if model.version is None else str(model.version)
        self.model.labels(model.name, version, model.sha256).set(1)

    def observe(self, done: ForwardPass) -> None:
        """Count a forward pass of an engine."""
        if done.rows:
            self.rows.observe(done.rows)
        self.images.inc(sum(len(job) for job in done.ended if job.images is not None))

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class Service:
    """Serves what a source publishes, on a device. `report` receives a sentence when the model changes.

    A model that enlarges images takes those of `held_out` for a request without any, if that is given. The
    constructor loads the first model; it raises DiffctlError if there is none or its file is damaged.
    """

    def __init__(
        self,
        source: ModelSource,
        device: torch.device,
        config: ServeConfig,
        report: Callable[[str], object] = lambda sentence: None,
        held_out: Path | None = None,
    ) -> None:
        self.source, self.config, self.metrics = source, config, Metrics()
        self.draining = False  # the server stops: no new requests
        self.active = 0  # unfinished requests
        self._device, self._held_out = device, held_out
        self.report, self._last_report = report, ""
        self._first = self._load(source)
        self._current: ServedModel | None = None
        self._old: ServedModel | None = None
        self._refreshing = asyncio.Lock()
        self.preparing = asyncio.Semaphore(MAX_PREPARATIONS)
        self._poll_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve in the running event loop."""
        self._current = self._serve(*self._first)
        self.metrics.held.set_function(lambda: sum(model.loop.engine.held for model in self._models))
        self.metrics.active.set_function(lambda: self.active)
        self._poll_task = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """Stop all engines; unfinished requests get an error."""
        if self._poll_task is not None:
            self._poll_task.cancel()
            await asyncio.gather(self._poll_task, return_exceptions=True)
        for model in self._models:
            await model.loop.stop()

    @property
    def _models(self) -> list[ServedModel]:
        """The loaded models, the one that serves first."""
        return [model for model in (self._current, self._old) if model is not None]

    @property
    def current(self) -> ServedModel:
        """The model that serves."""
        assert self._current is not None, "call start first"
        return self._current

    @property
    def is_ready(self) -> bool:
        """Whether a request for images would be accepted."""
        return not self.draining and self._current is not None and self._current.loop.is_running

    def cards(self) -> list[ModelCard]:
        """Return the descriptions of the loaded models."""
        states: tuple[Literal["serving", "draining"], ...] = ("serving", "draining")
        return [model.card(state) for model, state in zip(self._models, states, strict=False)]

    async def refresh(self, source: ModelSource | None = None) -> None:
        """Serve the model that the source has now, or that of another source from now on.

        Wait until the old model has finished. If the new one fails to load, raise, and keep source and model.
        """
        async with self._refreshing:
            source = source or self.source
            if await asyncio.to_thread(source.has_changed, self.current.published):
                published, loaded, guides = await asyncio.to_thread(self._load, source)
                self._old, self._current = self._current, self._serve(published, loaded, guides)
                self.metrics.reloads.labels("done").inc()
                version = "" if published.version is None else f" version {published.version}"
                self.report(f"{published.name}{version} serves now")
            self.source = source
            if self._old is not None:
                await self._old.loop.close()
                self._old = None

    async def drain(self) -> None:
        """Accept no new requests and wait up to `drain` seconds until all are answered."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain):
                while self.active:
                    await asyncio.sleep(0.02)

    def _load(self, source: ModelSource) -> tuple[PublishedModel, LoadedModel, Guides]:
        """Return the source's model, its network, and what guides it."""
        published, real = source.fetch(), None
        if self._held_out is not None and published.files.base is None:
            real = held_out_images(published.files.model, self._held_out)
        return published, *published.files._replace(real=real).load(self._device)

    def _serve(self, published: PublishedModel, loaded: LoadedModel, guides: Guides) -> ServedModel:
        model = ServedModel(published, loaded, self._device, self.config, self.metrics.observe, guides)
        self.metrics.set_model(model.ref)
        return model

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self.config.poll)
            try:
                await self.refresh()
                self._last_report = ""
            except Exception as error:  # the current model keeps serving
                self.metrics.reloads.labels("failed").inc()
                sentence = f"the model stays as it is: {reason(error)}"
                if sentence != self._last_report:  # a long outage is one line
                    self._last_report = sentence
                    self.report(sentence)
