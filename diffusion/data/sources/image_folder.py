"""A folder of one's own images: class sub-folders, a CSV file with labels, or no labels."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion.config import DataConfig
from diffusion.data.cache import raw_folder
from diffusion.data.fetch import Notify
from diffusion.data.image_files import ImageFileReader, Listing, list_images
from diffusion.data.problems import Problem
from diffusion.data.source import Outlook, RawData, Split
from diffusion.data.splits import Indices, hold_out, shuffled
from diffusion.errors import DiffctlError, UsageError

TEST_FRACTION = 0.1
SPLITS = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}
FILE_COLUMNS, LABEL_COLUMNS = ("file", "filename", "path", "image"), ("label", "class")


class Item(NamedTuple):
    """An image: its path below the root, its class and its split where they are known."""

    name: str
    label: str | None
    split: str | None


class ImageFolder:
    """png, jpeg, webp and gif files. A train folder beside a test or val folder is an official split."""

    def outlook(self, config: DataConfig) -> Outlook:
        """How many images there are, and what is wrong with the listing."""
        try:
            items, problems, listing = self._items(config)
        except DiffctlError as error:
            return Outlook(0, None, 0, blocked=str(error))
        classes = len({item.label for item in items} - {None})
        return Outlook(len(items), None, classes, problems=problems, sources=_sources(listing))

    def open(self, config: DataConfig, notify: Notify | None = None) -> RawData:
        """Classes in alphabetical (or numerical) order; without an official split a stratified one."""
        items, problems, listing = self._items(config)
        root = raw_folder(config.name, config.path)
        classes = class_order({item.label for item in items if item.label is not None})
        index = {name: number for number, name in enumerate(classes)}
        labels = np.array([index[item.label] for item in items if item.label is not None], dtype=np.int64)
        train, test = _split_rows(items, labels if classes else None, config)
        assert config.image_size is not None, "the config refuses an image-folder without a size"
        size, channels = config.image_size, config.channels or 3

        def split(rows: Indices) -> Split:
            reader = ImageFileReader(root, [items[row].name for row in rows], size, channels)
            return Split(reader, labels[rows] if classes else None)

        return RawData(
            classes=tuple(classes),
            shape=None,
            train=split(train),
            test=split(test),
            sources=_sources(listing),
            identity=listing.identity,
            problems=problems,
        )

    def _items(self, config: DataConfig) -> tuple[list[Item], list[Problem], Listing]:
        root = raw_folder(config.name, config.path)
        if not root.is_dir():
            raise DiffctlError(f"data.path: {root} is not a folder")
        listing = list_images(root)
        if not listing.names:
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


def _by_folder(root: Path, listing: Listing, labels: str | None) -> tuple[list[Item], list[Problem]]:
    """The class is the first folder of the path, after the split's folder where there are official ones."""
    splits = _split_folders(listing.names)
    items: list[Item] = []
    loose: list[Problem] = []
    used: set[str] = set()
    for name in listing.names:
        split, rest = _cut_split(name, splits)
        label, slash, _ = rest.partition("/")
        if slash:
            items.append(Item(name, label, split))
            used.add(label)
        else:
            loose.append(Problem(name, "outside a class folder"))
    if labels == "none" or (labels is None and not items):
        return [Item(name, None, _cut_split(name, splits)[0]) for name in listing.names], _stray(listing, 0)
    if not items:
        raise UsageError(f"data.labels: folders, but {root} has no sub-folder with images")
    empty = [Problem(name, "empty class") for name in sorted(_class_folders(root, splits) - used)]
    return items, loose + empty + _stray(listing, 1 + bool(splits))


def _split_folders(names: Sequence[str]) -> dict[str, str]:
    """The official split by folder, when all images lie in train and others that are held out."""
    tops = {name.split("/")[0] if "/" in name else "" for name in names}
    if len(tops) > 1 and "train" in tops and tops <= SPLITS.keys():
        return {top: SPLITS[top] for top in tops}
    return {}


def _cut_split(name: str, splits: dict[str, str]) -> tuple[str | None, str]:
    top, _, rest = name.partition("/")
    return (splits[top], rest) if top in splits else (None, name)


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


def _by_csv(path: Path, listing: Listing) -> tuple[list[Item], list[Problem]]:
    rows, problems = _read_csv(path)
    here = set(listing.names)
    items = [row for row in rows.values() if row.name in here and row.label]
    labelled = {row.name for row in items}
    problems += [Problem(name, "missing") for name in rows if name not in here]
    problems += [Problem(name, "without a label") for name in listing.names if name not in labelled]
    return items, problems + _stray(listing, 0)


def _read_csv(path: Path) -> tuple[dict[str, Item], list[Problem]]:
    """The rows by file, and files that are listed twice with different labels."""
    items: dict[str, Item] = {}
    problems = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            name_column = _column(path, columns, FILE_COLUMNS)
            label_column = _column(path, columns, LABEL_COLUMNS)
            for row in reader:
                item = Item(
                    (row[name_column] or "").strip().replace("\\", "/").removeprefix("./"),
                    (row[label_column] or "").strip(),
                    _named_split(path, row.get("split")),
                )
                if items.setdefault(item.name, item) != item:
                    problems.append(Problem(item.name, "listed twice with different labels"))
    except FileNotFoundError:
        raise UsageError(f"data.labels: {path} is not there; it is looked for in data.path") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"data.labels: {path} is not readable as CSV in UTF-8 ({error})") from None
    return items, problems


def _column(path: Path, columns: Sequence[str], names: Sequence[str]) -> str:
    for column in columns:
        if column.strip().lower() in names:
            return column
    raise UsageError(f"data.labels: {path} needs a first line with a column {' or '.join(names)}")


def _named_split(path: Path, name: str | None) -> str | None:
    if not name or not name.strip():
        return None
    if name.strip() not in SPLITS:
        raise UsageError(f"data.labels: {path}: split {name!r} is none of {', '.join(SPLITS)}")
    return SPLITS[name.strip()]


def _split_rows(items: Sequence[Item], labels: Indices | None, config: DataConfig) -> tuple[Indices, Indices]:
    """Shuffled rows of the training and the test split: the official one, else held out."""
    official = np.array([item.split or "" for item in items])
    if (official != "").any():
        if config.test_fraction is not None:
            raise UsageError("data.test_fraction: these images have a test split of their own; leave it out")
        train, test = np.flatnonzero(official != "test"), np.flatnonzero(official == "test")
        if not len(train) or not len(test):
            raise DiffctlError("data.path: one of the splits train and test has no images")
        return train[shuffled(len(train), 0, 0)], test[shuffled(len(test), 0, 1)]
    if len(items) < 2:
        raise DiffctlError("data.path: one image is too few, since some are held out to test against")
    fraction = config.test_fraction or TEST_FRACTION
    held_out = min(len(items) - 1, max(1, round(fraction * len(items))))
    return hold_out(labels, len(items), held_out, seed=0)
