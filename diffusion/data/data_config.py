"""The section `data` of params.yaml, and the registry of data sets. It loads neither torch nor NumPy.

To add a set, write a module with a builder, DataConfig → Source, and add an entry to SOURCES.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, model_validator

from diffusion.images.image_size import ImageSize, Size, height_and_width
from diffusion.system.registry import BuilderEntry, Registry, check_name, load_reference
from diffusion.system.section import FilePath, RegistrySection, brief

if TYPE_CHECKING:
    from diffusion.data.source import Source

IN_CODE_DIGEST = False  # diffusion/code_digest.py
OWN_IMAGES = ("image-folder", "hf")  # identified by their path
GIVEN = {"path", "image_size", "channels"}  # fields that a prepared split records as they were given


@dataclass(frozen=True)
class SourceEntry(BuilderEntry):
    """`builder` makes a Source from its section, `config` is that section's class, both as "module:name"."""

    builder: str
    config: str = "diffusion.data.data_config:DataConfig"


SOURCES: Registry[SourceEntry] = Registry(
    "data.name",
    "`DataConfig` → `Source` (`diffusion/data/source.py`)",
    {
        "digits": SourceEntry(
            "diffusion.data.sources.digits:Digits", "diffusion.data.sources.digits:DigitsConfig"
        ),
        "fashion-mnist": SourceEntry("diffusion.data.sources.fashion_mnist:FashionMnist"),
        "cifar10": SourceEntry("diffusion.data.sources.cifar:Cifar"),
        "cifar100": SourceEntry(
            "diffusion.data.sources.cifar:Cifar", "diffusion.data.sources.cifar:Cifar100Config"
        ),
        "imagenet": SourceEntry(
            "diffusion.data.sources.imagenet:ImageNet", "diffusion.data.data_config:PhotographsConfig"
        ),
        "imagenet64": SourceEntry("diffusion.data.sources.downsampled_imagenet:DownsampledImageNet"),
        "imagenet32": SourceEntry("diffusion.data.sources.downsampled_imagenet:DownsampledImageNet"),
        "mini-imagenet": SourceEntry("diffusion.data.sources.mini_imagenet:MiniImageNet"),
        "image-folder": SourceEntry(
            "diffusion.data.sources.image_folder:ImageFolder",
            "diffusion.data.sources.image_folder:ImageFolderConfig",
        ),
        "hf": SourceEntry(
            "diffusion.data.sources.hugging_face:Hub", "diffusion.data.sources.hugging_face:HubConfig"
        ),
    },
)


class DataConfig(RegistrySection):
    """Which images, from where, at which size.

    `name` is an entry of SOURCES, which may have own options here. `path` is the folder with the raw files;
    None looks in the cache and downloads public sets. `image_size` scales and crops images to squares of this
    side, or to [height, width]; None keeps their size. `channels` is 1 for grey or 3 for RGB; None keeps
    theirs. `on_bad` stops on unusable images, or skips and lists them. `flip` mirrors half of the training
    images; it is off by default, since digits and text have a direction.
    """

    CHOSEN_BY = "name"
    ENTRIES = SOURCES

    name: Annotated[str, AfterValidator(partial(check_name, registry=SOURCES))]
    path: FilePath | None = None
    image_size: ImageSize | None = None
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
    def size(self) -> Size:
        """Height and width in pixels of every prepared image."""
        assert self.image_size is not None, "the section refuses photographs without one"
        return height_and_width(self.image_size)


def preparation_changes(config: DataConfig, meta: Mapping[str, Any]) -> list[str]:
    """Return `data.option old → new` of the options that differ from those of a prepared split.

    `meta` is the split's. Earlier versions did not record the path.
    """
    before = {"name": meta["name"], **meta.get("given", {}), **meta["options"]}
    before |= {key: meta[key] for key in ("image_size", "channels") if getattr(config, key) is not None}
    now = config.model_dump(mode="json", exclude={"flip", "on_bad", *(GIVEN - before.keys())})
    if config.on_bad == "stop" and meta.get("skipped"):
        before["on_bad"], now["on_bad"] = "skip", "stop"
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    return [f"data.{name} {brief(before.get(name), str)} → {brief(now.get(name), str)}" for name in names]


def default_title(name: str, path: object) -> str:
    """Return a name for the images of a section: the last component of the path of one's own, else `name`."""
    last = Path(str(path)).name if name in OWN_IMAGES and path else ""
    return re.sub(r"[^\w.-]+", "-", last).strip(".-") or name


def build_source(config: DataConfig) -> "Source":
    """Return the data set that the section describes."""
    source: Source = load_reference(SOURCES[config.name].builder)(config)
    return source
