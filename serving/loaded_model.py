"""A served model: its weights on the device, an engine, and its description."""

from collections.abc import Callable
from typing import Any, Literal

import torch

from diffusion.choice.selection import best_settings, budget_settings, usual_settings
from diffusion.engine.engine import Engine, ForwardPass
from diffusion.model.model_file import Artefact, LoadedModel
from diffusion.protocol.settings import SampleSettings, refuse_idle
from diffusion.sample.class_labels import chosen_condition
from diffusion.sample.guides import Guides, check_served_guide
from diffusion.system.errors import UsageError
from diffusion.system.section import validate
from serving.engine_loop import EngineLoop, PendingImages
from serving.model_source import PublishedModel
from serving.schemas import ModelCard, ModelRef, SampleRequest, ServeConfig, check_count


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
        scores, options = self.published.scores, request.options
        if request.budget is None:
            usual = usual_settings(scores, options)
            settings = validate(SampleSettings, usual | options | {"seed": request.seed}, "the request")
        elif options:
            raise UsageError(f"budget takes {min(options)} from the model's sweep: give one of the two")
        elif scores is None:
            raise UsageError(f"{self.ref.name} has no scores to choose by: give steps instead of budget")
        else:
            settings = budget_settings(scores, request.budget, request.seed, self.ref.name, self.ref.sha256)
        refuse_idle(options, settings)
        check_count(len(request.image_indices), self.config)
        if settings.steps > self.config.steps:
            raise UsageError(f"{settings.steps} steps are too many: ask for {self.config.steps} at most")
        check_served_guide(settings, self.guide, self.ref.name)
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
