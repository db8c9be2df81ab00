"""Bodies of requests and responses, and the limits of a server."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffusion.protocol.edits import MAX_SIGMA_Y, METHODS, OPERATORS, PRODUCT
from diffusion.protocol.option_tables import SAMPLING_OPTIONS
from diffusion.protocol.options import Option, fields_section
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_HELD, MAX_NAME, MAX_STEPS
from diffusion.system.section import NotBool, PositiveInt, Section, Seed

MAX_IMAGES = 1024  # per response: 16 MB of PNG at 64×64×3 pixels
MAX_BODY = 64 * 1024  # bytes; a request with 1,024 indices has 20 KB
MAX_EDIT_BODY = 8 << 20  # bytes: a photograph of 8 MB, or of 6 MB in base64
MAX_EDIT_PIXELS = 1 << 24  # of a picture or a mask: 4096×4096
EDIT_PATHS = "/v1/edits", "/v1/edits/events"
BODY_LIMITS = dict.fromkeys((*EDIT_PATHS, "/playground/between"), MAX_EDIT_BODY)
RETRY_SECONDS = 5  # Retry-After of 429
MAX_BODIES = 256 << 20  # bytes of all unfinished requests

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

    @property
    def max_images(self) -> int:
        """The maximum of images per request: more than the queue takes would never fit."""
        return min(self.images, self.queue)


class StrictRequest(Section):
    """A request without type conversion: text is no number."""

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


EncodedPicture = Annotated[
    str,
    Field(
        max_length=-(-MAX_EDIT_BODY // 3) * 4,  # of a picture that is the body
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"},
    ),
]


class SettingsRequest(_OptionFields):  # type: ignore[misc]
    """The settings of images, and which ones: `indices`, without them 0 … num − 1."""

    num: int = Field(default=1, ge=1, le=MAX_IMAGES)
    indices: list[Index] | None = Field(default=None, min_length=1, max_length=MAX_IMAGES)
    seed: Seed = 0
    class_name: Annotated[str, Field(max_length=MAX_NAME)] | Index | None = Field(
        default=None, alias="class", description="A name or, as an integer, a number; without it all in turn."
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


class SampleRequest(SettingsRequest):
    """The images to make. Image i depends on the model, the settings and i alone.

    `indices` are the images; without them 0 … num − 1. An option that is left out is as in the best cell of
    the sweep, or 50 steps of DDIM. `budget` takes the best cell for this NFE per image. A model that enlarges
    images takes them in `low_res`, one for all or one for each.
    """

    budget: PositiveInt | None = None
    low_res: list[EncodedPicture] | None = Field(
        default=None, min_length=1, max_length=MAX_IMAGES, description="PNG, JPEG, WebP or GIF in base64."
    )


Format = Literal["json", "grid", "npz"]


class ImagesRequest(SampleRequest):
    """SampleRequest with `format`: json has a PNG per image, grid one PNG with all, npz the arrays."""

    format: Format = "json"


class EventsRequest(SampleRequest):
    """SampleRequest with an event of intermediate images every `every` steps."""

    every: PositiveInt = 10


class EditRequest(SettingsRequest):
    """A picture, what is measured of it, and the images to make from it, as `diffctl edit` does.

    Result k depends on the model, the picture, the settings and k alone. A picture or a mask of another size
    than needed is cropped to its middle and resized. An option that is left out is as in `diffctl edit`: 50
    steps of DDIM, without guidance.
    """

    image: EncodedPicture = Field(description="PNG, JPEG, WebP or GIF in base64.")
    mask: EncodedPicture | Literal["alpha"] | None = Field(
        default=None,
        description="A picture in base64: its white pixels are filled. `alpha` fills the transparent pixels "
        "of the image. A box is the operator mask:LEFT,TOP,RIGHT,BOTTOM.",
    )
    operator: Annotated[str, Field(max_length=MAX_NAME)] | None = Field(
        default=None,
        description=f"What was measured: of {', '.join(OPERATORS)}, joined by {PRODUCT}. By default mask, if "
        "there is a mask.",
        json_schema_extra={"examples": ["downsample:4", "gray+downsample:2", "blur:1.5", "mask:4,4,12,12"]},
    )
    strength: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Without an operator: the noise from which the picture is sampled again."
    )
    degrade: bool = Field(default=False, description="The image is an original: measure it first.")
    sigma_y: Annotated[float, Field(ge=0, le=MAX_SIGMA_Y)] = Field(
        default=0.0, description="The noise of the measurement, in units of [-1, 1]."
    )
    method: Annotated[str, Field(max_length=MAX_NAME)] | None = Field(
        default=None,
        description="By default ddnm; sdedit with a strength.",
        json_schema_extra={"examples": list(METHODS)},
    )
    method_options: dict[str, Any] = Field(default_factory=dict, max_length=MAX_SAMPLER_OPTIONS)
    num: int = Field(default=8, ge=1, le=MAX_IMAGES)
    class_name: Annotated[str, Field(max_length=MAX_NAME)] | Index | None = Field(
        default=None, alias="class", description="A name or, as an integer, a number; without it no class."
    )

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.mask is None and self.operator is None and self.strength is None and self.method is None:
            raise ValueError("nothing to do: give a mask, an operator or a strength")
        if self.strength is not None and (self.mask is not None or self.operator is not None):
            raise ValueError("strength edits the whole picture: leave out strength, or mask and operator")
        if self.degrade and self.mask is None and self.operator is None:
            raise ValueError("degrade measures the image: give a mask or an operator, or leave it out")
        return self


class EditsRequest(EditRequest):
    """EditRequest with `format`, as ImagesRequest."""

    format: Format = "json"


class EditEventsRequest(EditRequest):
    """EditRequest with an event of intermediate images every `every` steps."""

    every: PositiveInt = 10


def check_count(count: int, config: ServeConfig) -> None:
    """Raise UsageError for more images than a request may have."""
    if count > config.max_images:
        raise UsageError(f"{count} images are too many at once: ask for {config.max_images} at most")


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


class EditsResponse(ImagesResponse):
    """ImagesResponse with the method and its options, the operator, and how the picture was `resized`."""

    edit: dict[str, Any]
    resized: str | None


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
