"""The section `data` of params.yaml, with the options of every data set. Some sets have a subclass."""

from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, model_validator

from diffusion.data.source_registry import SOURCES
from diffusion.system.references import check_name
from diffusion.system.registry_section import RegistrySection
from diffusion.system.section import FilePath, Side

CHANGES_RESULTS = False  # diffusion/code_digest.py


class DataConfig(RegistrySection):
    """Which images, from where, at which size.

    `name` is an entry of SOURCES, which may have own options here. `path` is the folder with the raw files;
    None looks in the cache and downloads public sets. `image_size` scales and crops images to this side; None
    keeps their size. `channels` is 1 for grey or 3 for RGB; None keeps theirs. `on_bad` stops on unusable
    images, or skips and lists them. `flip` mirrors half of the training images; it is off by default, since
    digits and text have a direction.
    """

    CHOSEN_BY = "name"
    ENTRIES = SOURCES

    name: Annotated[str, AfterValidator(partial(check_name, registry=SOURCES))]
    path: FilePath | None = None
    image_size: Side | None = None
    channels: Literal[1, 3] | None = None
    on_bad: Literal["stop", "skip"] = "stop"
    flip: bool = False

    def own_options(self) -> dict[str, Any]:
        """Return the options that only this set has, as plain values; they decide its images and labels."""
        return self.model_dump(mode="json", exclude=set(DataConfig.model_fields))


class PhotographsConfig(DataConfig):
    """A set of photographs of many sizes: `image_size` is required, `channels` is 3 by default."""

    @model_validator(mode="after")
    def _size_is_given(self) -> Self:
        if self.image_size is None:
            raise ValueError(f"image_size: {self.name} has images of many sizes: set one, such as 64")
        return self

    @property
    def size(self) -> int:
        """Side in pixels of every prepared image."""
        assert self.image_size is not None, "the section refuses photographs without one"
        return self.image_size
