"""Mini-ImageNet: 100 classes of ImageNet, 600 images each, 84×84 (Vinyals et al. 2016, 1606.04080)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion.data.class_names import class_names
from diffusion.data.data_config import DataConfig
from diffusion.data.file_arrays import FileArray, file_array, integers
from diffusion.data.holdout import hold_out
from diffusion.data.readers.image_batches import entry
from diffusion.data.readers.pickles import read_pickle
from diffusion.data.source import DatasetInfo, FileArrayReader, RawData, Split
from diffusion.data.sources.kaggle import (
    download_from_kaggle,
    download_help,
    find_download,
    has_kaggle_access,
)
from diffusion.downloads.cache import find_file, raw_folder
from diffusion.downloads.fetch import OnProgress, file_checksums
from diffusion.system.errors import DiffctlError, printable

NAME = "mini-imagenet"
HANDLE = "whitemoon/miniimagenet"
FILES = tuple(f"mini-imagenet-cache-{part}.pkl" for part in ("train", "val", "test"))
SHAPE = (84, 84, 3)
DOWNLOAD = 1_200_000_000  # bytes, about


class MiniImageNet:
    """Kaggle's three pickles, each with `image_data` (N, 84, 84, 3) and `class_dict` name → rows.

    They have different classes, for few-shot learning. Here all 100 are pooled and a sixth of each class is
    held out: 50,000 training images, 10,000 test images.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def info(self) -> DatasetInfo:
        """Return whether the three files are there, or can be downloaded."""
        config = self.config
        folder = _folder(config)
        if _is_complete(folder):
            return DatasetInfo(60_000, SHAPE, 100)
        askable = config.path is None and has_kaggle_access()
        blocked = "" if askable else download_help("datasets", HANDLE, _manual_steps(folder))
        return DatasetInfo(60_000, SHAPE, 100, download=DOWNLOAD, blocked=blocked)

    def open(self, notify: OnProgress | None = None) -> RawData:
        """Open a stratified split with a fixed seed; classes in alphabetical order of synsets."""
        paths = self._files()
        images, names = [], []
        for path in paths:
            part, part_names = read_part(path)
            images.append(part)
            names.append(part_names)
        classes, labels = np.unique(np.concatenate(names), return_inverse=True)
        train, test = hold_out(labels, len(labels), max(1, len(labels) // 6), seed=0)
        return RawData(
            classes=tuple(str(name) for name in classes),
            shape=SHAPE,
            train=Split(FileArrayReader(images, SHAPE, planar=False, rows=train), labels[train]),
            test=Split(FileArrayReader(images, SHAPE, planar=False, rows=test), labels[test]),
            sources=file_checksums(paths, notify),
        )

    def _files(self) -> Sequence[Path]:
        config = self.config
        folder = _folder(config)
        if config.path is None and not _is_complete(folder):
            folder = download_from_kaggle("datasets", HANDLE, _manual_steps(folder))
        found = {name: find_file(folder, name) for name in FILES}
        if missing := [name for name, path in found.items() if path is None]:
            raise DiffctlError(f"{folder} has no {', '.join(missing)}: put it there")
        return [path for path in found.values() if path is not None]


def _folder(config: DataConfig) -> Path:
    """Return the configured folder, else the cache folder, or kagglehub's if that one is complete."""
    ours = raw_folder(NAME, config.path)
    if config.path is None and not _is_complete(ours) and (theirs := find_download("datasets", HANDLE)):
        return theirs if _is_complete(theirs) else ours
    return ours


def _is_complete(folder: Path) -> bool:
    return all(find_file(folder, name) for name in FILES)


def _manual_steps(folder: Path) -> str:
    return f"put {', '.join(FILES)} into {folder}, or set data.path to where they are"


def read_part(path: Path) -> tuple[FileArray, np.ndarray]:
    """Return a file's images, unread if possible, and the class name of each image."""
    content = read_pickle(path)
    classes = entry(content, "class_dict", path)
    try:
        images = file_array(entry(content, "image_data", path))
        if images.dtype != np.uint8 or images.shape[1:] != SHAPE:
            raise TypeError(f"images {images.dtype} {images.shape}")
        if not isinstance(classes, dict):
            raise TypeError("no rows by class")
        names = class_names(list(classes), path)
        of_class = [integers(rows) for rows in classes.values()]
    except TypeError as error:
        raise DiffctlError(f"{printable(path)} has {error}: it is not a file of Mini-ImageNet") from None
    rows = np.concatenate([*of_class, np.empty(0, np.int64)])
    if not len(rows) or not np.array_equal(np.sort(rows), np.arange(images.shape[0])):
        raise DiffctlError(
            f"{printable(path)} does not have one class for each image: it is not a file of Mini-ImageNet"
        )
    of_image = np.empty(len(rows), dtype=object)
    of_image[rows] = np.repeat(np.array(names, dtype=object), [len(part) for part in of_class])
    return images, of_image.astype(str)
