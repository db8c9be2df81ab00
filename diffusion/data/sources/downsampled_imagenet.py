"""The downsampled ImageNet: 1,331,167 images of 64×64 or 32×32 (Chrabaszcz et al. 2017, 1707.08819)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion.data.data_config import DataConfig
from diffusion.data.readers.archives import unpack_zip, zip_names
from diffusion.data.source import IMAGENET_CLASSES, DatasetInfo, RawData, Split, unique_names
from diffusion.data.sources.cifar import read_batches
from diffusion.downloads.fetch import (
    OnProgress,
    cache_root,
    file_checksums,
    find_file,
    find_files,
    raw_folder,
)
from diffusion.system.errors import DiffctlError
from diffusion.system.regular_files import read_regular_text

TRAIN = tuple(f"train_data_batch_{number}" for number in range(1, 11))
BATCHES = (*TRAIN, "val_data")
CLASS_LIST = "map_clsloc.txt"  # lines of synset, number, name; optional
PAGE = "https://image-net.org/download-images"


@dataclass(frozen=True)
class DownsampledImageNet:
    """The official batches, npz or pickle, unpacked or in the zips from image-net.org."""

    config: DataConfig

    @property
    def size(self) -> int:
        """The side in pixels, by the set's name."""
        return int(self.config.name.removeprefix("imagenet"))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (self.size, self.size, 3)

    def info(self) -> DatasetInfo:
        """Return which batches are there, unpacked or in a zip."""
        try:
            self._refuse_missing(raw_folder(self.config.name, self.config.path))
            blocked = ""
        except DiffctlError as error:
            blocked = str(error)
        return DatasetInfo(1_331_167, self.shape, IMAGENET_CLASSES, blocked=blocked)

    def open(self, notify: OnProgress | None = None) -> RawData:
        """Open the official split; its 50,000 validation images are the test split."""
        folder = raw_folder(self.config.name, self.config.path)
        paths = self._files(folder)
        return RawData(
            classes=self._class_names(folder),
            shape=self.shape,
            train=self._split(paths[: len(TRAIN)]),
            test=self._split(paths[len(TRAIN) :]),
            sources=file_checksums(paths, notify),
        )

    def _class_names(self, folder: Path) -> tuple[str, ...]:
        """Return the names in the class list if there is one, else the labels' numbers."""
        path = find_file(folder, CLASS_LIST)
        return read_class_list(path) if path else tuple(map(str, range(1, IMAGENET_CLASSES + 1)))

    def _split(self, paths: Sequence[Path]) -> Split:
        """Return the batches' split. Labels in the files count from 1, in the development kit's order."""
        return read_batches(paths, "labels", first_label=1, classes=IMAGENET_CLASSES, shape=self.shape)

    def _files(self, folder: Path) -> list[Path]:
        """Return the batches in order; those in zips are unpacked into the cache."""
        self._refuse_missing(folder)
        found, unpacked = self._places(folder), cache_root() / self.config.name / "unpacked"
        packed = [name for name, path in zip(BATCHES, found, strict=True) if path is None]
        if packed:
            for archive in self._zips(folder):
                unpack_zip(archive, [name + suffix for name in packed for suffix in ("", ".npz")], unpacked)
            found = [path or other for path, other in zip(found, self._places(unpacked), strict=True)]
        return [path for path in found if path is not None]

    def _refuse_missing(self, folder: Path) -> None:
        """Raise DiffctlError for batches that are neither in the folder nor in a zip there."""
        packed = {name.removesuffix(".npz") for archive in self._zips(folder) for name in zip_names(archive)}
        places = zip(BATCHES, self._places(folder), strict=True)
        if missing := [name for name, path in places if path is None and name not in packed]:
            raise DiffctlError(f"{', '.join(missing)} not found: {self._manual_steps(folder)}")

    def _places(self, folder: Path) -> list[Path | None]:
        return [find_file(folder, f"{name}.npz") or find_file(folder, name) for name in BATCHES]

    def _zips(self, folder: Path) -> list[Path]:
        return sorted(find_files(folder, f"Imagenet{self.size}_*.zip"))

    def _manual_steps(self, folder: Path) -> str:
        return (
            f"sign in at {PAGE}, get the {self.size}×{self.size} training and validation zips (npz) and put "
            f"them into {folder}, or set data.path to where they are"
        )


def read_class_list(path: Path) -> tuple[str, ...]:
    """Return the 1,000 names in the order of the labels."""
    names: dict[int, tuple[str, str]] = {}
    for line in read_regular_text(path).splitlines():
        synset, number, name = [*line.split(), "", ""][:3]
        if number.isdecimal() and len(number) <= len(str(IMAGENET_CLASSES)):
            names[int(number)] = (synset, name.replace("_", " "))
    if sorted(names) != list(range(1, IMAGENET_CLASSES + 1)):
        raise DiffctlError(f"{path} does not name the classes 1 to {IMAGENET_CLASSES}: repair or remove it")
    return unique_names([names[number] for number in sorted(names)], path)
