"""The section `data` of params.yaml: what every data set has. One with more has a subclass."""

from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, model_validator

from diffusion.data.source_registry import SOURCES
from diffusion.system.references import check_name
from diffusion.system.registry_section import RegistrySection
from diffusion.system.section import FilePath, Side


class DataConfig(RegistrySection):
    """Which images, from where, at which size.

    `name` is the data set, an entry of SOURCES, which may have options of its own here. `path` is the folder
    with the raw files; None: look in the cache and download what is public. `image_size` scales and crops
    images to this side; None keeps their size. `channels` 1 is grey, 3 is RGB; None keeps what they have.
    `on_bad` says whether unusable images stop the work or are left out and listed. `flip` mirrors half of the
    training images; it is off by default, since digits and text have a direction.
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
        """The options that this set alone has, which decide what images and labels it has; plain values."""
        return self.model_dump(mode="json", exclude=set(DataConfig.model_fields))


class PhotographsConfig(DataConfig):
    """A set of photographs of many sizes: it needs a size, and becomes RGB where `channels` is None."""

    @model_validator(mode="after")
    def _size_is_given(self) -> Self:
        if self.image_size is None:
            raise ValueError(f"image_size: {self.name} has images of many sizes, so give one, such as 64")
        return self

    @property
    def size(self) -> int:
        """The side in pixels that every image gets."""
        assert self.image_size is not None, "the section refuses photographs without one"
        return self.image_size
