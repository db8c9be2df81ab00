"""ImageNet from Kaggle: the object localization challenge of 2012 (Russakovsky et al. 2015)."""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion.data.data_config import PhotographsConfig
from diffusion.data.holdout import Indices, shuffled
from diffusion.data.problems import Problem
from diffusion.data.readers.image_files import ImageFileReader
from diffusion.data.readers.listing import FilePaths, list_images
from diffusion.data.source import IMAGENET_CLASSES, DatasetInfo, RawData, Split, unique_names
from diffusion.data.sources.kaggle import KaggleFiles
from diffusion.downloads.fetch import OnProgress
from diffusion.images.store import Labels
from diffusion.system.errors import DiffctlError, printable
from diffusion.system.regular_files import read_regular_text

NAME = "imagenet"
COMPETITION = "imagenet-object-localization-challenge"
TRAIN, VAL = "ILSVRC/Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/val"
SYNSETS, SOLUTION = "LOC_synset_mapping.txt", "LOC_val_solution.csv"
DOWNLOAD = 167_000_000_000  # bytes, about
COUNT = 1_281_167 + 50_000


class Files(NamedTuple):
    """Image files of a split below one of the challenge's folders: selected rows of a listing."""

    folder: str
    paths: FilePaths
    rows: Indices
    labels: Labels
    problems: list[Problem]
    identity: str


class ImageNet:
    """Training images in one folder per synset; validation images, labelled by a CSV, as the test split."""

    def __init__(self, config: PhotographsConfig) -> None:
        self.config = config
        self.files = KaggleFiles(
            NAME,
            config.path,
            "competitions",
            COMPETITION,
            DOWNLOAD,
            is_complete=lambda folder: _missing(folder) is None,
            manual_steps=_manual_steps,
        )

    def info(self) -> DatasetInfo:
        """Return whether the challenge's files are there, or can be downloaded."""
        return self.files.info(COUNT, None, IMAGENET_CLASSES)

    def open(self, notify: OnProgress | None = None) -> RawData:
        """Open the set: classes in the order of the synset map, training rows shuffled."""
        config, root = self.config, self.files.fetch()
        if missing := _missing(root):
            raise DiffctlError(f"{root / missing} is missing: {_manual_steps(root)}")
        synsets, classes = read_synsets(root / SYNSETS)
        train, test = _train_files(root, synsets), _val_files(root, synsets)

        def split(part: Files, order: Indices) -> Split:
            folder, channels = root / part.folder, config.channels or 3
            reader = ImageFileReader(folder, part.paths, part.rows[order], config.size, channels)
            return Split(reader, part.labels[order])

        return RawData(
            classes=classes,
            shape=None,
            train=split(train, shuffled(len(train.rows), 0)),
            test=split(test, np.arange(len(test.rows))),
            identity=f"{train.identity}:{test.identity}",
            problems=[*train.problems, *test.problems],
        )


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
    folders = listing.paths.folders
    of_folder = [synsets.get(prefix.partition("/")[0], -1) for prefix, _ in folders]
    labels = np.repeat(np.array(of_folder, dtype=np.int64), [count for _, count in folders])
    rows, unknown = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    if not len(rows):
        raise DiffctlError(f"{root / TRAIN} has no images of the synsets in {SYNSETS}")
    problems = [*listing.problems, *(Problem(name, "not an image") for name in listing.others)]
    problems += [Problem(name, "of an unknown synset") for name in listing.paths.names(unknown)]
    empty = set(synsets.values()) - set(of_folder)
    problems += [Problem(synset, "empty class") for synset, label in synsets.items() if label in empty]
    return Files(TRAIN, listing.paths, rows, labels[rows], problems, listing.identity)


def _val_files(root: Path, synsets: dict[str, int]) -> Files:
    """Return the images of the solution file, sorted by name."""
    rows, labels, problems = [], [], []
    solution = _read_solution(root / SOLUTION)
    listing = list_images(root / VAL)
    for image in sorted(solution):
        if solution[image] not in synsets:
            raise DiffctlError(
                f"{root / SOLUTION}: {printable(image) or 'a line'} has no synset of {SYNSETS}: get it again"
            )
        row = listing.paths.find(f"{image}.JPEG")
        if row >= 0:
            rows.append(row)
            labels.append(synsets[solution[image]])
        else:
            problems.append(Problem(f"{image}.JPEG", "missing"))
    if not rows:
        raise DiffctlError(f"{root / VAL} has none of the images of {SOLUTION}")
    return Files(
        VAL, listing.paths, np.array(rows), np.array(labels, dtype=np.int64), problems, listing.identity
    )


def _read_solution(path: Path) -> dict[str, str]:
    """Return the synset of each validation image, from "ILSVRC2012_val_00048981,n03995372 85 1 499"."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_regular_text(path), newline="")))
    except csv.Error as error:
        raise DiffctlError(f"{printable(path)} is not readable as CSV ({error}): get it again") from None
    return {row.get("ImageId") or "": (row.get("PredictionString") or "").partition(" ")[0] for row in rows}


def _missing(root: Path) -> str | None:
    places = (TRAIN, VAL, SYNSETS, SOLUTION)
    return next((place for place in places if not (root / place).exists()), None)


def _manual_steps(root: Path) -> str:
    return (
        f"unpack {COMPETITION}.zip into {root}, so that {root / TRAIN} and {root / SOLUTION} are there, or "
        "set data.path to where that is"
    )
