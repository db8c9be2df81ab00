"""A model that is served: its weights on the device, an engine, and what is said of it."""

from typing import Literal

import torch
from torch import Tensor

from diffusion.choice.best_settings import best_settings
from diffusion.choice.budget import pareto_front
from diffusion.engine.engine import Engine
from diffusion.images.pixels import to_nhwc
from diffusion.model.model_file import Artefact, LoadedModel
from diffusion.protocol.settings import SampleSettings
from serving.engine_loop import EngineLoop, PendingImages
from serving.metrics import Metrics
from serving.model_source import PublishedModel
from serving.requests import SampleRequest, request_condition, resolve_settings
from serving.responses import ModelCard, ModelRef, SampledImages
from serving.serve_config import ServeConfig


class ServedModel:
    """One version at work, within a running event loop."""

    def __init__(
        self,
        published: PublishedModel,
        loaded: LoadedModel,
        device: torch.device,
        config: ServeConfig,
        metrics: Metrics,
    ) -> None:
        self.published, self.config, self._loaded = published, config, loaded
        self.name = ModelRef(
            name=published.name, version=published.version, sha256=loaded.artefact.model_sha256
        )
        self.runner = EngineLoop(Engine(loaded, device, config.rows, config.queue), metrics.see)

    @property
    def artefact(self) -> Artefact:
        """What the model's file says of it."""
        return self._loaded.artefact

    def meant(self, asked: SampleRequest) -> SampleSettings:
        """The settings that a request means; UsageError when it asks for too much or what does not fit."""
        return resolve_settings(
            asked, self.published.scores, self.published.name, self.name.sha256, self.config
        )

    def order(self, asked: SampleRequest, every: int = 0) -> PendingImages:
        """Have the images made, told of every so many steps.

        UsageError when they cannot be, Full when there are too many already.
        """
        settings = self.meant(asked)
        condition = request_condition(asked, settings, self.artefact)
        return self.runner.add(settings, list(asked.wanted), condition, every)

    def made(self, order: PendingImages, images: Tensor) -> SampledImages:
        """An order's images, with what is said beside them."""
        job, labels = order.job, order.job.condition.labels
        return SampledImages(
            images=to_nhwc(images),
            model=self.name,
            settings=job.settings.model_dump(mode="json"),
            evaluations=job.nfe,
            indices=list(job.indices),
            labels=None if labels is None else labels.tolist(),
        )

    def card(self, state: Literal["serving", "draining"]) -> ModelCard:
        """What is said of it."""
        scores = self.published.scores
        usual = best_settings(scores) if scores else SampleSettings()
        front = []
        if scores:
            front = [
                {**choice._asdict(), "card": scores.cells[choice.cell].card}
                for choice in pareto_front(scores.cells)
            ]
        return ModelCard(
            model=self.name,
            state=state,
            card=self.artefact.model_dump(mode="json", exclude={"code", "train"}),
            usual=usual.model_dump(mode="json"),
            front=front,
            limits={"images": self.config.images, "steps": self.config.steps},
        )
