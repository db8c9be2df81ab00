"""Mini-ImageNet: 100 classes of ImageNet, 600 images each, 84×84 (Vinyals et al. 2016, 1606.04080)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion.data.data_config import DataConfig
from diffusion.data.readers.archives import Array
from diffusion.data.readers.pickles import entry, integers, plain_array, read_pickle
from diffusion.data.source import ArrayReader, DatasetInfo, RawData, Split, class_names, hold_out
from diffusion.data.sources.kaggle import KaggleFiles
from diffusion.downloads.fetch import OnProgress, file_checksums, find_file
from diffusion.system.errors import DiffctlError, printable

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
        self.files = KaggleFiles(
            config,
            "datasets",
            HANDLE,
            DOWNLOAD,
            missing=lambda folder: [name for name in FILES if find_file(folder, name) is None],
            manual_steps=lambda folder: (
                f"put {', '.join(FILES)} into {folder}, or set data.path to their folder"
            ),
        )

    def info(self) -> DatasetInfo:
        """Return whether the three files are there, or can be downloaded."""
        return self.files.info(60_000, SHAPE, 100)

    def open(self, notify: OnProgress | None = None) -> RawData:
        """Open a stratified split with a fixed seed; classes in alphabetical order of synsets."""
        folder = self.files.fetch()
        paths = [path for name in FILES if (path := find_file(folder, name))]
        images, names = zip(*map(read_part, paths), strict=True)
        classes, labels = np.unique(np.concatenate(names), return_inverse=True)
        parts = hold_out(labels, len(labels), max(1, len(labels) // 6), seed=0)
        train, test = (Split(ArrayReader(images, rows), labels[rows]) for rows in parts)
        return RawData(tuple(classes.tolist()), SHAPE, train, test, file_checksums(paths, notify))


def read_part(path: Path) -> tuple[Array, NDArray[np.str_]]:
    """Return a file's images, mapped if possible, and the class name of each image."""
    content, name = read_pickle(path), printable(path)
    images = plain_array(entry(content, "image_data", path), f"{name}: image_data")
    classes = entry(content, "class_dict", path)
    if images.dtype != np.uint8 or images.shape[1:] != SHAPE or not isinstance(classes, dict):
        raise DiffctlError(f"{name} has images {images.dtype} {images.shape}: it is no file of Mini-ImageNet")
    names = class_names(list(classes), path)
    of_class = [integers(rows, f"{name}: class_dict") for rows in classes.values()]
    rows = np.concatenate([*of_class, np.empty(0, np.int64)])
    if not len(rows) or not np.array_equal(np.sort(rows), np.arange(len(images))):
        raise DiffctlError(f"{name} does not have one class for each image: it is no file of Mini-ImageNet")
    of_image = np.empty(len(rows), dtype=object)
    of_image[rows] = np.repeat(np.array(names, dtype=object), [len(part) for part in of_class])
    return images, of_image.astype(str)
