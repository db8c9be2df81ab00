"""The server's models: the one that answers, the next loaded beside it, and the old one until it is done."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Literal

import torch

from diffusion.model.model_file import LoadedModel, load_model
from diffusion.system.errors import reason
from serving.loaded_model import ServedModel
from serving.metrics import Metrics
from serving.model_source import ModelSource, PublishedModel
from serving.responses import ModelCard, ModelRef
from serving.serve_config import ServeConfig

Say = Callable[[str], object]
"""Told in a sentence what happened to the models."""


class Service:
    """What a source publishes, served on a device. The first model is loaded when the service is made.

    DiffctlError when there is none, or when its file is not what it says.
    """

    def __init__(
        self, source: ModelSource, device: torch.device, config: ServeConfig, say: Say = lambda sentence: None
    ) -> None:
        self.config, self.metrics = config, Metrics()
        self.draining = False  # the server is to stop: nothing new is begun
        self.active = 0  # requests that have not been answered to their end
        self._source, self._device, self._say, self._said = source, device, say, ""
        self._first = self._load()
        self._current: ServedModel | None = None
        self._old: ServedModel | None = None
        self._looking = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to serve, in the running event loop."""
        self._current = self._serve(*self._first)
        self.metrics.of(lambda: self.name, self._held, lambda: self.active)
        self._watch = asyncio.create_task(self._look_again())

    async def stop(self) -> None:
        """End, if that has not been done yet; who still waits for images is told so."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        for model in (self._old, self._current):
            if model is not None:
                await model.runner.stop()

    @property
    def current(self) -> ServedModel:
        """The model that answers."""
        assert self._current is not None, "start comes first"
        return self._current

    @property
    def name(self) -> ModelRef:
        """Which model answers."""
        return self.current.name

    @property
    def is_ready(self) -> bool:
        """Whether a request for images would be taken."""
        return not self.draining and self._current is not None and self._current.runner.is_alive

    def cards(self) -> list[ModelCard]:
        """What is said of the models at work."""
        states: list[tuple[ServedModel | None, Literal["serving", "draining"]]]
        states = [(self._current, "serving"), (self._old, "draining")]
        return [model.card(state) for model, state in states if model is not None]

    async def look(self) -> None:
        """Serve what the source has now; what is wrong with that is raised, and the model stays as it is."""
        async with self._looking:
            await self._follow()

    async def drained(self) -> None:
        """Take nothing new, and wait until what was begun is answered, `drain` seconds at most."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain):
                while self.active:
                    await asyncio.sleep(0.02)

    def _held(self) -> int:
        models = (self._current, self._old)
        return sum(model.runner.engine.held for model in models if model is not None)

    def _load(self) -> tuple[PublishedModel, LoadedModel]:
        published = self._source.fetch()
        return published, load_model(published.file, self._device)

    def _serve(self, published: PublishedModel, loaded: LoadedModel) -> ServedModel:
        return ServedModel(published, loaded, self._device, self.config, self.metrics)

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(self.config.poll)
            try:
                await self.look()
                self._said = ""
            except Exception as error:  # the model that is there goes on serving
                self.metrics.reloads.labels("failed").inc()
                self._tell_once(f"the model stays as it is: {reason(error)}")

    def _tell_once(self, sentence: str) -> None:
        """Say it, unless it was the last that was said: an outage of a night is one line."""
        if sentence != self._said:
            self._said = sentence
            self._say(sentence)

    async def _follow(self) -> None:
        """Serve another model where the source has one, and wait for the old one's end."""
        if not await asyncio.to_thread(self._source.has_changed, self.current.published):
            return
        published, loaded = await asyncio.to_thread(self._load)
        self._old, self._current = self._current, self._serve(published, loaded)
        self.metrics.reloads.labels("done").inc()
        version = "" if published.version is None else f" version {published.version}"
        self._say(f"{published.name}{version} serves now")
        assert self._old is not None
        await self._old.runner.close()
        self._old = None
