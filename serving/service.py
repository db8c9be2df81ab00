"""The models of a server: the one that serves, its successor while it loads, and a draining predecessor."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Literal

import torch

from diffusion.model.model_file import LoadedModel, load_model
from diffusion.sample.guides import Guides
from diffusion.sample.network_files import load_guides
from diffusion.system.errors import reason
from serving.loaded_model import ServedModel
from serving.metrics import Metrics
from serving.model_source import ModelSource, PublishedModel
from serving.requests import ServeConfig
from serving.responses import ModelCard, ModelRef


class Service:
    """Serves what a source publishes, on a device. `report` receives a sentence when the model changes.

    The constructor loads the first model; it raises DiffctlError if there is none or its file is damaged.
    """

    def __init__(
        self,
        source: ModelSource,
        device: torch.device,
        config: ServeConfig,
        report: Callable[[str], object] = lambda sentence: None,
    ) -> None:
        self.config, self.metrics = config, Metrics()
        self.draining = False  # the server stops: no new requests
        self.active = 0  # unfinished requests
        self._source, self._device = source, device
        self.report, self._last_report = report, ""
        self._first = self._load()
        self._current: ServedModel | None = None
        self._old: ServedModel | None = None
        self._refreshing = asyncio.Lock()
        self._poll_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve in the running event loop."""
        self._current = self._serve(*self._first)
        self.metrics.set_model(self.ref)
        self.metrics.held.set_function(self._held)
        self.metrics.active.set_function(lambda: self.active)
        self._poll_task = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """Stop all engines; unfinished requests get an error."""
        if self._poll_task is not None:
            self._poll_task.cancel()
            await asyncio.gather(self._poll_task, return_exceptions=True)
        for model in (self._old, self._current):
            if model is not None:
                await model.loop.stop()

    @property
    def current(self) -> ServedModel:
        """The model that serves."""
        assert self._current is not None, "call start first"
        return self._current

    @property
    def ref(self) -> ModelRef:
        """The name, version and SHA-256 of the model that serves."""
        return self.current.ref

    @property
    def is_ready(self) -> bool:
        """Whether a request for images would be accepted."""
        return not self.draining and self._current is not None and self._current.loop.is_running

    def cards(self) -> list[ModelCard]:
        """Return the descriptions of the loaded models."""
        states: list[tuple[ServedModel | None, Literal["serving", "draining"]]]
        states = [(self._current, "serving"), (self._old, "draining")]
        return [model.card(state) for model, state in states if model is not None]

    async def refresh(self) -> None:
        """Serve the model that the source has now; if it fails to load, raise and keep the current one."""
        async with self._refreshing:
            await self._replace()

    async def drain(self) -> None:
        """Accept no new requests and wait up to `drain` seconds until all are answered."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain):
                while self.active:
                    await asyncio.sleep(0.02)

    def _held(self) -> int:
        models = (self._current, self._old)
        return sum(model.loop.engine.held for model in models if model is not None)

    def _load(self) -> tuple[PublishedModel, LoadedModel, Guides]:
        """Return the source's model, its network, and what guides it."""
        published = self._source.fetch()
        guides = load_guides(published.files, self._device)
        return published, load_model(published.files.model, self._device), guides

    def _serve(self, published: PublishedModel, loaded: LoadedModel, guides: Guides) -> ServedModel:
        return ServedModel(published, loaded, self._device, self.config, self.metrics, guides)

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

    async def _replace(self) -> None:
        """Load and serve the source's model if it changed, then wait until the old one has finished."""
        if not await asyncio.to_thread(self._source.has_changed, self.current.published):
            return
        published, loaded, guides = await asyncio.to_thread(self._load)
        self._old, self._current = self._current, self._serve(published, loaded, guides)
        self.metrics.reloads.labels("done").inc()
        self.metrics.set_model(self.ref)
        version = "" if published.version is None else f" version {published.version}"
        self.report(f"{published.name}{version} serves now")
        assert self._old is not None
        await self._old.loop.close()
        self._old = None
