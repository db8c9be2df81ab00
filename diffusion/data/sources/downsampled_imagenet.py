"""The downsampled ImageNet: 1,331,167 images of 64×64 or 32×32 (Chrabaszcz et al. 2017, 1707.08819)."""

from pathlib import Path

from diffusion.data.data_config import DataConfig
from diffusion.data.readers.archives import unpack_zip, zip_names
from diffusion.data.source import IMAGENET_CLASSES, DatasetInfo, RawData, unique_names
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
from diffusion.system.files import read_regular_text

TRAIN = tuple(f"train_data_batch_{number}" for number in range(1, 11))
BATCHES = (*TRAIN, "val_data")
CLASS_LIST = "map_clsloc.txt"  # lines of synset, number, name; optional
PAGE = "https://image-net.org/download-images"


class DownsampledImageNet:
    """The official batches, npz or pickle, unpacked or in the zips from image-net.org."""

    def __init__(self, config: DataConfig) -> None:
        self.name, self.folder = config.name, raw_folder(config.name, config.path)
        self.size = int(config.name.removeprefix("imagenet"))
        self.shape = (self.size, self.size, 3)

    def info(self) -> DatasetInfo:
        """Return which batches are there, unpacked or in a zip."""
        try:
            self._refuse_missing()
            blocked = ""
        except DiffctlError as error:
            blocked = str(error)
        return DatasetInfo(1_331_167, self.shape, IMAGENET_CLASSES, blocked=blocked)

    def open(self, notify: OnProgress | None = None) -> RawData:
        """Open the official split; its 50,000 validation images are the test split.

        Labels in the files count from 1, in the development kit's order. Without its list of classes they
        are the names.
        """
        paths, class_list = self._files(), find_file(self.folder, CLASS_LIST)
        train, test = (
            read_batches(part, "labels", first_label=1, classes=IMAGENET_CLASSES, shape=self.shape)
            for part in (paths[: len(TRAIN)], paths[len(TRAIN) :])
        )
        numbers = tuple(map(str, range(1, IMAGENET_CLASSES + 1)))
        classes = read_class_list(class_list) if class_list else numbers
        return RawData(classes, self.shape, train, test, file_checksums(paths, notify))

    def _files(self) -> list[Path]:
        """Return the batches in order; those in zips are unpacked into the cache."""
        self._refuse_missing()
        found, unpacked = _places(self.folder), cache_root() / self.name / "unpacked"
        packed = [name for name, path in zip(BATCHES, found, strict=True) if path is None]
        if packed:
            for archive in self._zips():
                unpack_zip(archive, [name + suffix for name in packed for suffix in ("", ".npz")], unpacked)
            found = [path or other for path, other in zip(found, _places(unpacked), strict=True)]
        return [path for path in found if path is not None]

    def _refuse_missing(self) -> None:
        """Raise DiffctlError for batches that are neither in the folder nor in a zip there."""
        packed = {name.removesuffix(".npz") for archive in self._zips() for name in zip_names(archive)}
        places = zip(BATCHES, _places(self.folder), strict=True)
        if missing := [name for name, path in places if path is None and name not in packed]:
            raise DiffctlError(
                f"{', '.join(missing)} not found: sign in at {PAGE}, get the {self.size}×{self.size} "
                f"training and validation zips (npz) and put them into {self.folder}, or set data.path to "
                "where they are"
            )

    def _zips(self) -> list[Path]:
        return sorted(find_files(self.folder, f"Imagenet{self.size}_*.zip"))


def _places(folder: Path) -> list[Path | None]:
    return [find_file(folder, f"{name}.npz") or find_file(folder, name) for name in BATCHES]


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
