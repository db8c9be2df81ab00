"""ImageNet as Kaggle gives it out: the object-localisation challenge of 2012 (Russakovsky et al. 2015)."""

import csv
import os
from pathlib import Path

import numpy as np

from diffusion.config import DataConfig
from diffusion.data.cache import raw_folder
from diffusion.data.fetch import Notify
from diffusion.data.image_files import ImageFileReader, list_images
from diffusion.data.kaggle import can_ask_kaggle, from_kaggle, how_to_get
from diffusion.data.problems import Problem
from diffusion.data.source import Outlook, RawData, Split
from diffusion.data.splits import shuffled
from diffusion.data.synsets import CLASSES, unique_names
from diffusion.errors import DiffctlError

NAME = "imagenet"
COMPETITION = "imagenet-object-localization-challenge"
TRAIN, VAL = "ILSVRC/Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/val"
SYNSETS, SOLUTION = "LOC_synset_mapping.txt", "LOC_val_solution.csv"
DOWNLOAD = 167_000_000_000  # bytes, about
COUNT = 1_281_167 + 50_000


class ImageNet:
    """A folder a synset to train on; the validation images, labelled by the solution CSV, to test on."""

    def outlook(self, config: DataConfig) -> Outlook:
        """Whether the challenge's folders and lists are there, or can be asked for."""
        folder = raw_folder(NAME, config.path)
        if not _missing(folder):
            return Outlook(COUNT, None, CLASSES)
        askable = config.path is None and can_ask_kaggle()
        blocked = "" if askable else how_to_get("competitions", COMPETITION, _by_hand(folder))
        return Outlook(COUNT, None, CLASSES, download=DOWNLOAD, blocked=blocked)

    def open(self, config: DataConfig, notify: Notify | None = None) -> RawData:
        """Classes in the order of the synset map, which is that of the synsets; training rows shuffled."""
        root = raw_folder(NAME, config.path)
        if _missing(root) and config.path is None:
            root = from_kaggle("competitions", COMPETITION, _by_hand(root))
        if missing := _missing(root):
            raise DiffctlError(f"{root / missing} is missing: {_by_hand(root)}")
        synsets, classes = read_synsets(root / SYNSETS)
        train, train_labels, problems, identity = _train_files(root, synsets)
        order = shuffled(len(train), 0)
        test, test_labels, more, solution = _val_files(root, synsets)

        def split(names: list[str], labels: list[int]) -> Split:
            assert config.image_size is not None, "the config refuses imagenet without a size"
            reader = ImageFileReader(root, names, config.image_size, config.channels or 3)
            return Split(reader, np.array(labels, dtype=np.int64))

        return RawData(
            classes=classes,
            shape=None,
            train=split([train[row] for row in order], [train_labels[row] for row in order]),
            test=split(test, test_labels),
            identity=f"{identity}:{solution}",
            problems=[*problems, *more],
        )


def read_synsets(path: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of every synset, and the classes' names, from lines "n01440764 tench, Tinca tinca"."""
    pairs = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise DiffctlError(f"{path} does not have lines of a synset and its name: get it again")
    labels = {synset: label for label, (synset, _) in enumerate(pairs)}
    return labels, unique_names([(synset, name.strip()) for synset, name in pairs])


def _train_files(root: Path, synsets: dict[str, int]) -> tuple[list[str], list[int], list[Problem], str]:
    listing = list_images(root / TRAIN)
    names, labels = [], []
    problems = [problem._replace(where=f"{TRAIN}/{problem.where}") for problem in listing.problems]
    problems += [Problem(f"{TRAIN}/{name}", "not an image") for name in listing.others]
    for name in listing.names:
        synset = name.partition("/")[0]
        if synset in synsets:
            names.append(f"{TRAIN}/{name}")
            labels.append(synsets[synset])
        else:
            problems.append(Problem(f"{TRAIN}/{name}", f"outside the synsets of {SYNSETS}"))
    empty = sorted(set(synsets.values()) - set(labels))
    by_label = list(synsets)
    problems += [Problem(f"{TRAIN}/{by_label[label]}", "empty class") for label in empty]
    if not names:
        raise DiffctlError(f"{root / TRAIN} has no images")
    return names, labels, problems, listing.identity


def _val_files(root: Path, synsets: dict[str, int]) -> tuple[list[str], list[int], list[Problem], str]:
    """The images of the solution, in its order of names."""
    names, labels, problems = [], [], []
    with open(root / SOLUTION, encoding="utf-8", newline="") as file:
        solution = {
            row.get("ImageId") or "": row.get("PredictionString") or "" for row in csv.DictReader(file)
        }
    for image in sorted(solution):
        name = f"{VAL}/{image}.JPEG"
        synset = solution[image].partition(" ")[0]
        if synset not in synsets:
            raise DiffctlError(
                f"{root / SOLUTION}: {image or 'a line'} has no synset of {SYNSETS}: get it again"
            )
        if os.path.exists(root / name):
            names.append(name)
            labels.append(synsets[synset])
        else:
            problems.append(Problem(name, "missing"))
    if not names:
        raise DiffctlError(f"{root / VAL} has none of the images of {SOLUTION}")
    return names, labels, problems, list_images(root / VAL).identity


def _missing(root: Path) -> str | None:
    places = (TRAIN, VAL, SYNSETS, SOLUTION)
    return next((place for place in places if not (root / place).exists()), None)


def _by_hand(root: Path) -> str:
    return (
        f"unpack {COMPETITION}.zip into {root}, so that {root / TRAIN} and {root / SOLUTION} are there, or "
        "set data.path to where that is"
    )
