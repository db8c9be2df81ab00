"""Images of a server's responses, and the offline images that they equal to rounding."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion.images.pixels import to_nhwc
from diffusion.images.store import Images
from diffusion.model.model_file import load_model
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import class_condition, mixed_condition
from diffusion.sample.generate import generate
from tests.helpers.server_process import CPU

HERE = "http://127.0.0.1"

Greys = NDArray[np.int_]


def decoded(image: str) -> Greys:
    """Return a grey image (H, W) from its PNG in base64."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image))), dtype=int)


def pixels(answer: dict[str, Any]) -> Greys:
    """Return the grey images (N, H, W) of a response."""
    return np.stack([decoded(image) for image in answer["images"]])


def offline(
    model: Path, settings: SampleSettings, indices: Sequence[int], klass: str | None = None
) -> Images:
    """Return the images of a model file, without a server."""
    loaded = load_model(model)
    if klass is None:
        condition = mixed_condition(loaded.artefact, settings, indices)
    else:
        condition = class_condition(loaded.artefact, klass, len(indices))
    return to_nhwc(generate(loaded, settings, indices, condition, CPU))


def assert_offline(
    images: Greys, model: Path, settings: SampleSettings, indices: Sequence[int], klass: str | None = None
) -> None:
    """Assert that grey images are the offline ones, to rounding."""
    assert np.abs(images - offline(model, settings, indices, klass)[..., 0].astype(int)).max() <= 1


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and values of server-sent events."""
    blocks = [block.splitlines() for block in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]
