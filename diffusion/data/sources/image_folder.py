"""A folder of one's own images: class sub-folders, a CSV file with labels, or no labels."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np

from diffusion.config import DataConfig
from diffusion.data.cache import raw_folder
from diffusion.data.fetch import Notify
from diffusion.data.image_files import ImageFileReader, Listing, Names, list_images
from diffusion.data.label_csv import SPLITS, Row, read_labels
from diffusion.data.problems import Problem
from diffusion.data.source import Outlook, RawData, Split
from diffusion.data.splits import Indices, hold_out, shuffled
from diffusion.data.store import Labels
from diffusion.errors import DiffctlError, UsageError

TEST_FRACTION = 0.1


@dataclass(frozen=True)
class Items:
    """Images by column: path below the root, class name and split, these None where they are not known."""

    names: Names
    labels: Sequence[str] | None
    splits: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.names)


class ImageFolder:
    """png, jpeg, webp and gif files. A train folder beside a test or val folder is an official split."""

    def outlook(self, config: DataConfig) -> Outlook:
        """How many images there are, and what is wrong with the listing."""
        try:
            items, problems, listing = self._items(config)
        except DiffctlError as error:
            return Outlook(0, None, 0, blocked=str(error))
        classes = len(set(items.labels or ()))
        return Outlook(len(items), None, classes, problems=problems, sources=_sources(listing))

    def open(self, config: DataConfig, notify: Notify | None = None) -> RawData:
        """Classes in alphabetical (or numerical) order; without an official split a stratified one."""
        items, problems, listing = self._items(config)
        root = raw_folder(config.name, config.path)
        classes, labels = _numbered(items)
        train, test = _split_rows(items, labels, config)
        assert config.image_size is not None, "the config refuses an image-folder without a size"
        size, channels = config.image_size, config.channels or 3

        def split(rows: Indices) -> Split:
            reader = ImageFileReader(root, items.names[rows], size, channels)
            return Split(reader, None if labels is None else labels[rows])

        return RawData(
            classes=classes,
            shape=None,
            train=split(train),
            test=split(test),
            sources=_sources(listing),
            identity=listing.identity,
            problems=problems,
        )

    def _items(self, config: DataConfig) -> tuple[Items, list[Problem], Listing]:
        root = raw_folder(config.name, config.path)
        if not root.is_dir():
            raise DiffctlError(f"data.path: {root} is not a folder")
        listing = list_images(root)
        if not len(listing.names):
            raise DiffctlError(f"data.path: {root} has no png, jpeg, webp or gif images")
        if config.labels is not None and config.labels.endswith(".csv"):
            items, problems = _by_csv(root / config.labels, listing)
        else:
            items, problems = _by_folder(root, listing, config.labels)
        if not items:
            raise DiffctlError(f"data.path: none of the {len(listing.names):,} images in {root} has a label")
        return items, [*listing.problems, *problems], listing


def _sources(listing: Listing) -> dict[str, str]:
    return {"names and sizes": listing.content}


def class_order(names: set[str]) -> list[str]:
    """Class names sorted, as numbers when all are."""
    numbers = all(name.isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name), name) if numbers else (0, name))


def _numbered(items: Items) -> tuple[tuple[str, ...], Labels | None]:
    """The classes in order and the number of each item's; no classes and None for unlabelled images."""
    if items.labels is None:
        return (), None
    classes = class_order(set(items.labels))
    number = {name: at for at, name in enumerate(classes)}
    return tuple(classes), np.fromiter((number[label] for label in items.labels), dtype=np.int64)


def _by_folder(root: Path, listing: Listing, labels: str | None) -> tuple[Items, list[Problem]]:
    """The class is the first folder of the path, after the split's folder where there are official ones."""
    official = _split_folders(listing)
    splits: list[str | None] = []
    found: list[str] = []  # the class of each image, "" outside a class folder
    for prefix, count in listing.folders:
        top, _, below = prefix.partition("/")
        splits += [official.get(top)] * count
        found += [(below if official else prefix).partition("/")[0]] * count
    if labels == "none" or (labels is None and not any(found)):
        return Items(listing.names, None, splits), _stray(listing, 0)
    if not any(found):
        raise UsageError(f"data.labels: folders, but {root} has no sub-folder with images")
    inside = np.array([label != "" for label in found])
    loose = [Problem(os.fsdecode(name), "outside a class folder") for name in listing.names[~inside]]
    empty = [Problem(name, "empty class") for name in sorted(_class_folders(root, official) - set(found))]
    items = Items(listing.names[inside], list(compress(found, inside)), list(compress(splits, inside)))
    return items, loose + empty + _stray(listing, 1 + bool(official))


def _split_folders(listing: Listing) -> dict[str, str]:
    """The official split by folder, when all images lie in train and others that are held out."""
    tops = {prefix.partition("/")[0] for prefix, _ in listing.folders}
    if len(tops) > 1 and "train" in tops and tops <= SPLITS.keys():
        return {top: SPLITS[top] for top in tops}
    return {}


def _class_folders(root: Path, splits: dict[str, str]) -> set[str]:
    """All folders where classes lie, with images or without."""
    places = [root / top for top in splits] or [root]
    return {
        entry.name
        for place in places
        for entry in place.iterdir()
        if entry.is_dir() and not entry.name.startswith((".", "__"))
    }


def _stray(listing: Listing, depth: int) -> list[Problem]:
    """Other files among the images; a README or a list at the top is none of them."""
    return [Problem(name, "not an image") for name in listing.others if name.count("/") >= max(1, depth)]


def _by_csv(path: Path, listing: Listing) -> tuple[Items, list[Problem]]:
    rows, problems = read_labels(path)
    told = {problem.where for problem in problems}
    names: list[bytes] = []
    found: list[Row] = []
    for spelled in listing.names:
        name = os.fsdecode(spelled)
        row = rows.pop(name, None)
        if row is not None and row.label:
            names.append(spelled)
            found.append(row)
        elif name not in told:
            problems.append(Problem(name, "without a label"))
    problems += [Problem(name, "missing") for name in sorted(rows)]
    items = Items(np.array(names), [row.label for row in found], [row.split for row in found])
    return items, problems + _stray(listing, 0)


def _split_rows(items: Items, labels: Labels | None, config: DataConfig) -> tuple[Indices, Indices]:
    """Shuffled rows of the training and the test split: the official one, else held out."""
    in_test = np.fromiter((split == "test" for split in items.splits), dtype=bool)
    if any(split is not None for split in items.splits):
        if config.test_fraction is not None:
            raise UsageError("data.test_fraction: these images have a test split of their own; leave it out")
        train, test = np.flatnonzero(~in_test), np.flatnonzero(in_test)
        if not len(train) or not len(test):
            raise DiffctlError("data.path: one of the splits train and test has no images")
        return train[shuffled(len(train), 0, 0)], test[shuffled(len(test), 0, 1)]
    if len(items) < 2:
        raise DiffctlError("data.path: one image is too few, since some are held out to test against")
    fraction = config.test_fraction or TEST_FRACTION
    held_out = min(len(items) - 1, max(1, round(fraction * len(items))))
    return hold_out(labels, len(items), held_out, seed=0)
