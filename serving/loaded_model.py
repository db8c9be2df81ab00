"""A served model: its weights on the device, an engine, and its description."""

from collections.abc import Callable
from typing import Any, Literal

import torch

from diffusion.choice.selection import best_settings
from diffusion.engine.engine import Engine, ForwardPass
from diffusion.model.model_file import Artefact, LoadedModel
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.class_labels import chosen_condition
from diffusion.sample.guides import Guides, check_served_guide
from serving.engine_loop import EngineLoop, PendingImages
from serving.model_source import PublishedModel
from serving.requests import SampleRequest, ServeConfig, resolve_settings
from serving.responses import ModelCard, ModelRef


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
        self.published, self.config = published, config
        self._loaded, self._guides = loaded, guides
        self.ref = ModelRef(
            name=published.name, version=published.version, sha256=loaded.artefact.model_sha256
        )
        self.loop = EngineLoop(Engine(loaded, device, config.rows, config.queue, guides), on_pass)

    @property
    def artefact(self) -> Artefact:
        """The metadata of the model's file."""
        return self._loaded.artefact

    @property
    def guide(self) -> str | None:
        """The text of its guide, that of the best cell; None without one."""
        scores = self.published.scores
        return None if scores is None or self.published.files.guide is None else best_settings(scores).guide

    def resolve(self, request: SampleRequest) -> SampleSettings:
        """Return the settings of a request; raise UsageError if it does not fit the model or the limits."""
        settings = resolve_settings(
            request, self.published.scores, self.published.name, self.ref.sha256, self.config
        )
        check_served_guide(settings, self.guide, self.published.name)
        return settings

    def submit(self, request: SampleRequest, every: int = 0) -> PendingImages:
        """Queue the images of a request; raise UsageError if it does not fit, Full if the queue is full."""
        settings = self.resolve(request)
        labelled, indices = self._guides.labelled(self._loaded), list(request.image_indices)
        condition = chosen_condition(labelled, settings, indices, request.class_name)
        return self.loop.submit(settings, indices, condition, every)

    def describe(self, pending: PendingImages) -> dict[str, Any]:
        """Return the metadata of images in a response."""
        job, labels = pending.job, pending.job.condition.labels
        return {
            "model": self.ref,
            "settings": job.settings.model_dump(mode="json"),
            "nfe": job.nfe,
            "indices": list(job.indices),
            "labels": None if labels is None else labels.tolist(),
        }

    def card(self, state: Literal["serving", "draining"]) -> ModelCard:
        """Return the description of the model for /v1/models."""
        scores = self.published.scores
        usual = best_settings(scores) if scores else SampleSettings()
        chosen = [(one, scores.cells[one.cell]) for one in scores.front] if scores else []
        return ModelCard(
            model=self.ref,
            state=state,
            card=self.artefact.model_dump(mode="json", exclude={"code", "train"}),
            usual=usual.model_dump(mode="json"),
            front=[
                {"cell": one.cell, "nfe": one.nfe, "distance": one.value, "card": cell.card}
                for one, cell in chosen
            ],
            limits={"images": self.config.images, "steps": self.config.steps},
        )
