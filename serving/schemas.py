"""Bodies of requests and responses, and the limits of a server."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_origin

from pydantic import BaseModel, ConfigDict, Field

from diffusion.protocol.options import Option, fields_section
from diffusion.protocol.settings import SAMPLING_OPTIONS
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_HELD, MAX_NAME, MAX_STEPS
from diffusion.system.section import NotBool, PositiveInt, Section, Seed

MAX_IMAGES = 1024  # per response: 16 MB of PNG at 64×64×3 pixels
MAX_BODY = 64 * 1024  # bytes; a request with 1,024 indices has 20 KB

HTTP_OPTIONS = {name: one for name, one in SAMPLING_OPTIONS.items() if one.http and name != "seed"}

Index = Annotated[int, Field(ge=0, le=MAX_COUNT)]
MAX_SAMPLER_OPTIONS = 100


class ServeConfig(Section):
    """Limits of a server: `images` and `steps` per request, `rows` per forward pass, `queue` images held.

    A guided image takes two rows. Requests beyond the queue get 429. The server checks for a new champion
    every `poll` seconds, and takes up to `drain` seconds to finish its requests at shutdown.
    """

    images: Annotated[int, Field(ge=1, le=MAX_IMAGES), NotBool] = 64
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS), NotBool] = 1000
    rows: Annotated[int, Field(ge=2, le=MAX_BATCH), NotBool] = 64
    queue: Annotated[int, Field(ge=1, le=MAX_HELD), NotBool] = 1024
    poll: Annotated[float, Field(ge=0.1, le=86400), NotBool] = 10.0
    drain: Annotated[float, Field(ge=0, le=3600), NotBool] = 60.0


class StrictRequest(Section):
    """A request whose values are of the declared types, such as no text for a number."""

    model_config = ConfigDict(populate_by_name=True, strict=True)


def _option_field(option: Option) -> tuple[Any, Any]:
    """Return the type and the field of a sampling option in a request."""
    is_mapping = get_origin(option.plain_type) is dict
    field = Field(
        default=None,
        description=option.help,
        strict=False if get_origin(option.plain_type) is tuple else None,
        max_length=MAX_SAMPLER_OPTIONS if is_mapping else None,
        json_schema_extra={"examples": list(option.choices)} if option.choices else None,
    )
    return (option.plain_type if is_mapping else option.annotation) | None, field


_OptionFields: Any = fields_section(
    "_OptionFields", StrictRequest, {name: _option_field(one) for name, one in HTTP_OPTIONS.items()}
)


class SampleRequest(_OptionFields):  # type: ignore[misc]
    """The images to make. Image i depends on the model, the settings and i alone.

    `indices` are the images; without them 0 … num − 1. An option that is left out is as in the best cell of
    the sweep, or 50 steps of DDIM. `budget` takes the best cell for this NFE per image.
    """

    num: int = Field(default=1, ge=1, le=MAX_IMAGES)
    indices: list[Index] | None = Field(default=None, min_length=1, max_length=MAX_IMAGES)
    seed: Seed = 0
    budget: PositiveInt | None = None
    class_name: Annotated[str, Field(max_length=MAX_NAME)] | Index | None = Field(
        default=None, alias="class", description="By name or number; without it all in turn."
    )

    @property
    def options(self) -> dict[str, Any]:
        """The sampling options that it sets; an explicit null overrides that of the best cell."""
        return {
            name: getattr(self, name)
            for name, option in HTTP_OPTIONS.items()
            if getattr(self, name) is not None or (option.default is None and name in self.model_fields_set)
        }

    @property
    def image_indices(self) -> Sequence[int]:
        """The indices of the images."""
        return range(self.num) if self.indices is None else self.indices


class ImagesRequest(SampleRequest):
    """SampleRequest with `format`: json has a PNG per image, grid one PNG with all, npz the arrays."""

    format: Literal["json", "grid", "npz"] = "json"


class EventsRequest(SampleRequest):
    """SampleRequest with an event of intermediate images every `every` steps."""

    every: PositiveInt = 10


def check_count(count: int, config: ServeConfig) -> None:
    """Raise UsageError for more images than a request may have."""
    if count > config.images:
        raise UsageError(f"{count} images are too many at once: ask for {config.images} at most")


class ModelRef(BaseModel):
    """A model: its registered name or file name, its version if registered, and its SHA-256."""

    name: str
    version: int | None
    sha256: str


class ImagesResponse(BaseModel):
    """PNGs in base64 with their indices, labels if there are classes, settings, and NFE per image."""

    model: ModelRef
    settings: dict[str, Any]
    nfe: int
    indices: list[int]
    labels: list[int] | None
    images: list[str]


class StepEvent(BaseModel):
    """The model's predictions of some images after `step` of `steps` steps, as PNGs in base64."""

    step: int
    steps: int
    indices: list[int]
    images: list[str]


class ModelCard(BaseModel):
    """A served model: its state, metadata, default settings, limits, and the best cell for each NFE."""

    model: ModelRef
    state: Literal["serving", "draining"]
    card: dict[str, Any]
    usual: dict[str, Any]
    front: list[dict[str, Any]]
    limits: dict[str, int]


class Problem(BaseModel):
    """What is wrong and what to do, in one sentence."""

    detail: str
