"""What the page offers to choose from: all that this model can be sampled by, and the data beside it."""

from pathlib import Path

from pydantic import BaseModel

from diffusion.analysis.image_inputs import open_matching_store
from diffusion.model.model_file import Artefact
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.spacing import SPACINGS
from diffusion.system.errors import DiffctlError
from serving.loaded_model import ServedModel
from serving.playground.sweep_cost import SweepCost, sweep_cost


class SamplerChoice(BaseModel):
    """A sampler's name, and whether eta means something to it."""

    name: str
    stochastic: bool


class StoreChoice(BaseModel):
    """How many real images there are to choose from, or `why` there are none."""

    images: int
    why: str | None = None


class Choices(BaseModel):
    """Samplers, spacings and noises that fit the model, its guidance, real images, and its sweep's costs."""

    samplers: list[SamplerChoice]
    spacings: list[str]
    noises: list[str]
    guidance: bool
    store: StoreChoice
    cost: SweepCost | None


def choices_of(model: ServedModel, store: Path) -> Choices:
    """What there is to choose for a model, beside real images in that store."""
    spec = model.artefact.network
    scores = model.published.scores
    return Choices(
        samplers=[SamplerChoice(name=name, stochastic=entry.stochastic) for name, entry in SAMPLERS.items()],
        spacings=list(SPACINGS),
        noises=["small", "large", *(["learned"] if spec.learned_variance else [])],
        guidance=spec.null_class,
        store=_store(store, model.artefact),
        cost=None if scores is None else sweep_cost(scores),
    )


def _store(path: Path, artefact: Artefact) -> StoreChoice:
    try:
        return StoreChoice(images=len(open_matching_store(path, artefact)))
    except DiffctlError as error:
        return StoreChoice(images=0, why=str(error))
