"""The section `sample` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from diffusion.protocol.settings import CellConfig
from diffusion.system.section import BatchSize, NotBool, ShortText


class SampleConfig(CellConfig):
    """What all cells of a sweep share, and where their images are made.

    `batch_size` images are made at a time. `runner` local makes them in this process; ray does on all devices
    of this machine, or on the Ray cluster at `address`, with `num_gpus` for each batch (None: one where there
    are any). None of these changes an image but by rounding.
    """

    batch_size: BatchSize = 250
    runner: Literal["local", "ray"] = "local"
    address: ShortText | None = None
    num_gpus: Annotated[float, Field(ge=0, le=64), NotBool] | None = None
