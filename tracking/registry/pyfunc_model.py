"""The registered model: MLflow executes this file to load it ("models from code"), without pickles.

It is stored with an archive of diffusion/, and imports nothing else of this project.

    {"inputs": [{"num": 4, "steps": 50, "class": "3"}]}
    →  {"predictions": [{"indices": […], "labels": […], "images": [a PNG in base64, …]}]}
"""

import base64
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

CODE = Path(__file__).parent / "code" / "diffusion.zip"  # none before it is stored
if CODE.is_file():
    sys.path.insert(0, str(CODE))

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from pydantic import BaseModel, ConfigDict, Field, field_validator

from diffusion.images.pictures import png_bytes
from diffusion.images.pixels import to_nhwc
from diffusion.protocol.option_tables import SAMPLING_OPTIONS, refuse_idle
from diffusion.protocol.options import Option, fields_section
from diffusion.protocol.resolution import resolve_settings, settings_of
from diffusion.protocol.scores_document import read_scores
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import image_condition
from diffusion.sample.generate import generate
from diffusion.sample.guides import check_served_guide
from diffusion.sample.network_files import NetworkFiles, Recipe
from diffusion.sample.sampler import NonFiniteError
from diffusion.system.devices import default_device
from diffusion.system.errors import UsageError
from diffusion.system.registry import load_package

if CODE.is_file():
    load_package(CODE)  # the plugins that the model was trained with

MAX_IMAGES = 64  # of one request: the scoring server gives up after 60 seconds
MAX_NAME = 100  # characters of an option's value
MAX_CLASS_NAME = 1000
MAX_INDEX = 10**15


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True, strict=True, allow_inf_nan=False)


def _option_field(option: Option) -> tuple[Any, Any]:
    """Return the type and the field of a sampling option, in types that MLflow supports."""
    ends = get_args(option.plain_type) if get_origin(option.plain_type) is tuple else ()
    kind = list[ends[0]] if ends else option.plain_type  # type: ignore[valid-type]
    field = Field(
        default=None,
        ge=option.bound(lower=True),
        le=option.bound(lower=False),
        min_length=len(ends) or None,
        max_length=len(ends) or (MAX_NAME if kind is str else None),
    )
    return kind | None, field


_OptionFields: Any = fields_section(
    "_OptionFields",
    _Request,
    {name: _option_field(option) for name, option in SAMPLING_OPTIONS.items() if option.registered},
)


class Request(_OptionFields):  # type: ignore[misc]
    """A request for images. Image i depends on the model, the settings and i alone.

    `indices` are by default 0 … num − 1. Other defaults are the settings of the sweep's best cell.
    """

    num: int = Field(default=1, ge=1, le=MAX_IMAGES)
    indices: list[int] | None = Field(default=None, min_length=1, max_length=MAX_IMAGES)
    class_name: str | None = Field(default=None, alias="class", max_length=MAX_CLASS_NAME)

    @field_validator("indices")
    @classmethod
    def _are_indices(cls, indices: list[int] | None) -> list[int] | None:
        if any(not 0 <= index < MAX_INDEX for index in indices or ()):  # MLflow cannot bound items
            raise ValueError(f"an image's index is from 0 to {MAX_INDEX - 1:,}")
        return indices


class Reply(BaseModel):
    """The images of a request: PNG in base64, their indices, and labels of a class-conditional model."""

    indices: list[int]
    labels: list[int] | None = None
    images: list[str]


class RegisteredSampler(PythonModel):
    """Samples images from the stored weights."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights; ValueError if the stored scores are of other weights."""
        weights = Path(context.artifacts["weights"])
        self.scores = read_scores(Path(context.artifacts["scores"]))
        best = self.scores.cells[str(context.model_config["best_cell"])]
        others = {name: context.artifacts.get(name) for name in ("guide", "classifier", "base")}
        files = NetworkFiles(weights, **{name: Path(file) for name, file in others.items() if file})
        recipe, self.device = Recipe.read(settings_of(best, "the best cell"), files), default_device()
        if wrong := recipe.networks.find_difference(best.card):
            raise ValueError(f"the {wrong} is not the one that was registered: its SHA-256 differs")
        self.guide = recipe.settings.guide
        self.model, self.guides = recipe.load(self.device)

    def predict(self, model_input: list[Request]) -> list[Reply]:  # type: ignore[override]
        """Return a reply for each request.

        INVALID_PARAMETER_VALUE for an unsupported request, INTERNAL_ERROR for NaN or infinity.
        """
        try:
            return [self._sample(request) for request in model_input]
        except UsageError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        except NonFiniteError as error:
            raise MlflowException(str(error)) from error

    def _sample(self, request: Request) -> Reply:
        indices = request.indices if request.indices is not None else list(range(request.num))
        chosen = request.model_dump(include=set(SampleSettings.model_fields), exclude_none=True)
        schedule = self.model.artefact.process.schedule
        settings = resolve_settings(schedule, chosen, self.scores, where="the request").settings
        refuse_idle(chosen, settings)
        check_served_guide(settings, self.guide, "this model")
        condition = image_condition(self.model, settings, indices, self.guides, request.class_name)
        images = to_nhwc(generate(self.model, settings, indices, condition, self.device, guides=self.guides))
        return Reply(
            indices=indices,
            labels=None if condition.labels is None else condition.labels.tolist(),
            images=[base64.b64encode(png_bytes(image)).decode() for image in images],
        )


mlflow.models.set_model(RegisteredSampler())
