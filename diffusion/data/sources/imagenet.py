"""ImageNet from Kaggle: the object localization challenge of 2012 (Russakovsky et al. 2015)."""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion.data.data_config import PhotographsConfig
from diffusion.data.readers.image_files import ImageFileReader, Paths, as_text, list_images
from diffusion.data.source import (
    IMAGENET_CLASSES,
    DatasetInfo,
    ImageProblem,
    Indices,
    RawData,
    Split,
    shuffled,
    unique_names,
)
from diffusion.data.sources.kaggle import KaggleFiles
from diffusion.downloads.fetch import OnProgress
from diffusion.images.store import Labels
from diffusion.system.errors import DiffctlError, printable
from diffusion.system.files import read_regular_text

COMPETITION = "imagenet-object-localization-challenge"
TRAIN, VAL = "ILSVRC/Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/val"
SYNSETS, SOLUTION = "LOC_synset_mapping.txt", "LOC_val_solution.csv"
DOWNLOAD = 167_000_000_000  # bytes, about
COUNT = 1_281_167 + 50_000


class Files(NamedTuple):
    """Image files of a split, by their paths below a folder."""

    folder: Path
    paths: Paths
    labels: Labels
    problems: list[ImageProblem]
    identity: str


class ImageNet:
    """Training images in one folder per synset; validation images, labelled by a CSV, as the test split."""

    def __init__(self, config: PhotographsConfig) -> None:
        self.config = config
        self.files = KaggleFiles(
            config, "competitions", COMPETITION, DOWNLOAD, missing=_missing, manual_steps=_manual_steps
        )

    def info(self) -> DatasetInfo:
        """Return whether the challenge's files are there, or can be downloaded."""
        return self.files.info(COUNT, None, IMAGENET_CLASSES)

    def open(self, notify: OnProgress | None = None) -> RawData:
        """Open the set: classes in the order of the synset map, training rows shuffled."""
        root = self.files.fetch()
        synsets, classes = read_synsets(root / SYNSETS)
        train, test = _train_files(root, synsets), _val_files(root, synsets)

        def split(part: Files, order: Indices) -> Split:
            size, channels = self.config.size, self.config.channels or 3
            reader = ImageFileReader(part.folder, part.paths[order], size, channels)
            return Split(reader, part.labels[order])

        splits = split(train, shuffled(len(train.paths), 0)), split(test, np.arange(len(test.paths)))
        identity = f"{train.identity}:{test.identity}"
        return RawData(classes, None, *splits, {}, identity, [*train.problems, *test.problems])


def read_synsets(path: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return each synset's label, and the class names, from lines "n01440764 tench, Tinca tinca"."""
    pairs = [line.split(maxsplit=1) for line in read_regular_text(path).splitlines() if line.strip()]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise DiffctlError(f"{path} does not have lines of a synset and its name: get it again")
    labels = {synset: label for label, (synset, _) in enumerate(pairs)}
    return labels, unique_names([(synset, name.strip()) for synset, name in pairs], path)


def _train_files(root: Path, synsets: dict[str, int]) -> Files:
    """Return the training images, one folder per synset."""
    listing = list_images(root / TRAIN)
    of_folder = [synsets.get(prefix.partition("/")[0], -1) for prefix, _ in listing.folders]
    labels = np.repeat(np.array(of_folder, dtype=np.int64), [count for _, count in listing.folders])
    known = labels >= 0
    if not known.any():
        raise DiffctlError(f"{root / TRAIN} has no images of the synsets in {SYNSETS}")
    problems = [*listing.problems, *(ImageProblem(name, "not an image") for name in listing.others)]
    problems += [ImageProblem(name, "of an unknown synset") for name in as_text(listing.paths[~known])]
    problems += [ImageProblem(one, "empty class") for one, label in synsets.items() if label not in of_folder]
    return Files(root / TRAIN, listing.paths[known], labels[known], problems, listing.identity)


def _val_files(root: Path, synsets: dict[str, int]) -> Files:
    """Return the images of the solution file, sorted by name."""
    rows, labels, problems = [], [], []
    listing = list_images(root / VAL)
    row_of = {name: row for row, name in enumerate(as_text(listing.paths))}
    for image, synset in sorted(_read_solution(root / SOLUTION).items()):
        name = f"{image}.JPEG"
        if synset not in synsets:
            where = printable(image) or "a line"
            raise DiffctlError(f"{root / SOLUTION}: {where} has no synset of {SYNSETS}: get it again")
        if name in row_of:
            rows.append(row_of[name])
            labels.append(synsets[synset])
        else:
            problems.append(ImageProblem(name, "missing"))
    if not rows:
        raise DiffctlError(f"{root / VAL} has none of the images of {SOLUTION}")
    paths, numbers = listing.paths[rows], np.array(labels, dtype=np.int64)
    return Files(root / VAL, paths, numbers, problems, listing.identity)


def _read_solution(path: Path) -> dict[str, str]:
    """Return the synset of each validation image, from "ILSVRC2012_val_00048981,n03995372 85 1 499"."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_regular_text(path), newline="")))
    except csv.Error as error:
        raise DiffctlError(f"{printable(path)} is not readable as CSV ({error}): get it again") from None
    return {row.get("ImageId") or "": (row.get("PredictionString") or "").partition(" ")[0] for row in rows}


def _missing(root: Path) -> list[str]:
    return [place for place in (TRAIN, VAL, SYNSETS, SOLUTION) if not (root / place).exists()]


def _manual_steps(root: Path) -> str:
    return (
        f"unpack {COMPETITION}.zip into {root}, so that {root / TRAIN} and {root / SOLUTION} are there, or "
        "set data.path to where that is"
    )
