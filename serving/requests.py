"""What a request may ask for, and which settings that means for a model."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffusion.choice.best_settings import best_settings, budget_settings
from diffusion.model.model_file import ModelDescription
from diffusion.process.condition import Condition
from diffusion.protocol.option_values import Eta, GuidanceScale, Interval, SamplerName, SpacingName
from diffusion.protocol.samplers import SAMPLERS, Noise
from diffusion.protocol.scores import ScoresDocument
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import SPACINGS
from diffusion.sample.class_labels import class_condition, mixed_condition
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_COUNT, MAX_NAME
from diffusion.system.section import PositiveInt, Seed, Steps, validate
from serving.serve_config import MAX_IMAGES, ServeConfig

BUDGET_FIELDS = (
    "steps", "sampler", "sampler_options", "eta", "noise", "spacing", "clip", "guidance", "guidance_interval",
)  # fmt: skip

Index = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class SampleRequest(BaseModel):
    """The images to make. Image i depends on the model, the settings and i alone.

    `indices` are the images wanted; without them 0 … num − 1. What is left out is as in the best cell of the
    sweep that the model was scored by; without scores, 50 steps of DDIM. `budget` is of network evaluations
    an image, and takes the best cell for them.
    """

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, strict=True, allow_inf_nan=False, frozen=True
    )

    num: int = Field(default=1, ge=1, le=MAX_IMAGES)
    indices: list[Index] | None = Field(default=None, min_length=1, max_length=MAX_IMAGES)
    seed: Seed = 0
    steps: Steps | None = None
    budget: PositiveInt | None = None
    sampler: SamplerName | None = Field(default=None, json_schema_extra={"examples": list(SAMPLERS)})
    sampler_options: dict[str, Any] | None = Field(default=None, max_length=100)
    eta: Eta | None = None
    noise: Noise | None = None
    spacing: SpacingName | None = Field(default=None, json_schema_extra={"examples": list(SPACINGS)})
    clip: bool | None = None
    guidance: GuidanceScale | None = None
    guidance_interval: Interval | None = Field(
        default=None,
        strict=False,
        description="[low, high]: guided where low < σ/α ≤ high. null, where it is given, is everywhere.",
    )
    class_name: Annotated[str, Field(max_length=MAX_NAME)] | Index | None = Field(
        default=None, alias="class", description="By name or number; without it all in turn."
    )

    @property
    def wanted(self) -> Sequence[int]:
        """The indices of the images."""
        return range(self.num) if self.indices is None else self.indices


class ImagesRequest(SampleRequest):
    """As ImagesAsked; `format` json gives a PNG an image, grid one PNG of all, npz the arrays."""

    format: Literal["json", "grid", "npz"] = "json"


class EventsRequest(SampleRequest):
    """As ImagesAsked; every so many steps there is an event with the images as they look by then."""

    every: PositiveInt = 10


def resolve_settings(
    asked: SampleRequest, scores: ScoresDocument | None, model: str, sha256: str, config: ServeConfig
) -> SampleSettings:
    """What the request means for this model; UsageError when it asks for too much or what does not fit."""
    chosen = {name: getattr(asked, name) for name in BUDGET_FIELDS if getattr(asked, name) is not None}
    if "guidance_interval" in asked.model_fields_set:  # null too: what is usual may be an interval
        chosen["guidance_interval"] = asked.guidance_interval
    if asked.budget is None:
        usual = _usual(scores, chosen)
        settings = validate(SampleSettings, usual | chosen | {"seed": asked.seed}, "the request")
    else:
        settings = _for_budget(asked, chosen, scores, model, sha256)
    if asked.guidance_interval is not None and not settings.guidance:
        raise UsageError(
            "guidance_interval does nothing without guidance: give guidance too, or leave it out"
        )
    check_count(len(asked.wanted), config)
    if settings.steps > config.steps:
        raise UsageError(f"{settings.steps} steps are too many: ask for {config.steps} at most")
    return settings


def check_count(count: int, config: ServeConfig) -> None:
    """UsageError when so many images are too many for one request."""
    if count > config.images:
        raise UsageError(f"{count} images are too many at once: ask for {config.images} at most")


def request_condition(
    asked: SampleRequest, settings: SampleSettings, artefact: ModelDescription
) -> Condition:
    """The classes of the images; UsageError when there is no such class."""
    if asked.class_name is None:
        return mixed_condition(artefact, settings, asked.wanted)
    return class_condition(artefact, str(asked.class_name), len(asked.wanted))


def _usual(scores: ScoresDocument | None, chosen: dict[str, Any]) -> dict[str, Any]:
    """The settings of the best cell; none beside another sampler, whose settings say nothing of it."""
    if scores is None:
        return {}
    usual = best_settings(scores)
    return {} if chosen.get("sampler", usual.sampler) != usual.sampler else usual.model_dump()


def _for_budget(
    asked: SampleRequest, chosen: dict[str, Any], scores: ScoresDocument | None, model: str, sha256: str
) -> SampleSettings:
    assert asked.budget is not None
    if chosen:
        raise UsageError(f"budget takes {min(chosen)} from the model's sweep: give one of the two")
    if scores is None:
        raise UsageError(f"{model} has no scores to choose by: give steps instead of budget")
    return budget_settings(scores, asked.budget, asked.seed, model, sha256)
