"""Registry of the data sets by `data.name` of params.yaml. It loads neither torch nor NumPy.

To add one, write a module with a builder, DataConfig → Source, and add an entry.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusion.system.references import load_reference, reference_module

if TYPE_CHECKING:
    from diffusion.data.data_config import DataConfig
    from diffusion.data.source import Source

CHANGES_RESULTS = False  # diffusion/code_digest.py


@dataclass(frozen=True)
class SourceEntry:
    """`builder` makes a Source from its section; `config` is that section's class, both as "module:name".

    A set with own options has a subclass of DataConfig.
    """

    builder: str
    config: str = "diffusion.data.data_config:DataConfig"

    @property
    def module(self) -> str:
        """The module that reads the set; its code is part of the prepared data's digest."""
        return reference_module(self.builder)


SOURCES = {
    "digits": SourceEntry(
        "diffusion.data.sources.digits:Digits", "diffusion.data.sources.digits:DigitsConfig"
    ),
    "fashion-mnist": SourceEntry("diffusion.data.sources.fashion_mnist:build"),
    "cifar10": SourceEntry("diffusion.data.sources.cifar:cifar10"),
    "cifar100": SourceEntry(
        "diffusion.data.sources.cifar:cifar100", "diffusion.data.sources.cifar:Cifar100Config"
    ),
    "imagenet": SourceEntry(
        "diffusion.data.sources.imagenet:ImageNet", "diffusion.data.data_config:PhotographsConfig"
    ),
    "imagenet64": SourceEntry("diffusion.data.sources.downsampled_imagenet:imagenet64"),
    "imagenet32": SourceEntry("diffusion.data.sources.downsampled_imagenet:imagenet32"),
    "mini-imagenet": SourceEntry("diffusion.data.sources.mini_imagenet:MiniImageNet"),
    "image-folder": SourceEntry(
        "diffusion.data.sources.image_folder:ImageFolder",
        "diffusion.data.sources.image_folder:ImageFolderConfig",
    ),
    "hf": SourceEntry(
        "diffusion.data.sources.hugging_face:Hub", "diffusion.data.sources.hugging_face:HubConfig"
    ),
}


def build_source(config: "DataConfig") -> "Source":
    """Return the data set that the section describes."""
    source: Source = load_reference(SOURCES[config.name].builder)(config)
    return source
