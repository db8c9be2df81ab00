"""The data sets by name, as `data.name` in params.yaml says it. It loads neither torch nor NumPy.

A further one is a module with a builder, DataConfig → Source, and an entry here.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusion.system.references import load_reference, reference_module

if TYPE_CHECKING:
    from diffusion.data.data_config import DataConfig
    from diffusion.data.source import Source


@dataclass(frozen=True)
class SourceEntry:
    """`builder` makes a Source of its section; `config` is that section's class, each a "module:name".

    A set with options of its own has a subclass of DataConfig.
    """

    builder: str
    config: str = "diffusion.data.data_config:DataConfig"

    @property
    def module(self) -> str:
        """Where it is read: what its prepared images come from beside what all do."""
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
    """The data set that the section describes."""
    source: Source = load_reference(SOURCES[config.name].builder)(config)
    return source
