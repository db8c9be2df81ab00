"""A folder of the user's images: class sub-folders, a CSV file with labels, or no labels."""

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from diffusion.data.data_config import PhotographsConfig
from diffusion.data.readers.image_files import (
    SPLITS,
    ImageFileReader,
    Listing,
    as_text,
    list_images,
    read_labels,
    split_of,
)
from diffusion.data.source import (
    SHOWN,
    DatasetInfo,
    ImageProblem,
    Indices,
    RawData,
    Split,
    class_names,
    hold_out,
    shuffled,
)
from diffusion.downloads.fetch import OnProgress, raw_folder
from diffusion.images.store import Labels
from diffusion.layout import check_raw_folder, home
from diffusion.system.errors import DiffctlError, DiffctlWarning, UsageError, printable
from diffusion.system.files import sha256_file
from diffusion.system.section import NotBool, ShortText

TEST_FRACTION = 0.1
MIN_SCORED = 2  # images of a split, for scores
OUTSIDE = "outside train and test"  # why an image next to an official split cannot be used


@dataclass(frozen=True)
class Items:
    """The usable images by column: row in the listing, and class number.

    `classes` has the names by number; without labels it is empty and `labels` is None. `in_test` is the
    official split, None without one.
    """

    rows: Indices
    classes: tuple[str, ...] = ()
    labels: Labels | None = None
    in_test: NDArray[np.bool_] | None = None


class NoImages(DiffctlError):
    """The folder is missing, or has no images: prepared data stay usable without them."""


class ImageFolderConfig(PhotographsConfig):
    """`path` has the images.

    `labels`: `folders` (one class per sub-folder), `none`, or the name of a CSV file in `path`; None takes
    sub-folders if there are any. `test_fraction` is held out if there is no test split.
    """

    labels: ShortText | None = None
    test_fraction: Annotated[float, Field(gt=0, lt=1), NotBool] | None = None

    @model_validator(mode="after")
    def _folder_and_labels(self) -> Self:
        if self.path is None:
            raise ValueError(f"path: {self.name} needs the folder with the images")
        if self.labels not in (None, "folders", "none") and not str(self.labels).endswith(".csv"):
            raise ValueError(f"labels: folders, none or the name of a .csv file (got {self.labels!r})")
        return self


class ImageFolder:
    """png, jpeg, webp and gif files. A train folder with a test or val folder is an official split."""

    def __init__(self, config: ImageFolderConfig) -> None:
        self.config = config
        self.root = raw_folder(config.name, config.path)

    def info(self) -> DatasetInfo:
        """Return the number of images and the problems of the listing."""
        try:
            items, problems, listing = self._items()
        except DiffctlError as error:
            is_unreadable = not isinstance(error, NoImages)
            return DatasetInfo(0, None, 0, blocked=str(error), is_unreadable=is_unreadable)
        count, classes = len(items.rows), len(items.classes)
        return DatasetInfo(count, None, classes, problems=problems, sources=self._sources(listing))

    def open(self, notify: OnProgress | None = None) -> RawData:
        """Open the set: classes in alphabetical or numerical order; the official or a stratified split."""
        items, problems, listing = self._items()

        def split(chosen: Indices) -> Split:
            paths, channels = listing.paths[items.rows[chosen]], self.config.channels or 3
            reader = ImageFileReader(self.root, paths, self.config.size, channels)
            return Split(reader, None if items.labels is None else items.labels[chosen])

        train, test = map(split, _split_rows(items, self.config))
        sources = self._sources(listing)
        return RawData(items.classes, None, train, test, sources, listing.identity, problems)

    def _items(self) -> tuple[Items, list[ImageProblem], Listing]:
        root, labels = self.root, self.config.labels
        if not root.is_dir():
            raise NoImages(f"data.path: {root} is not a folder")
        check_raw_folder(root, home(Path.cwd()), "data.path:")
        listing = list_images(root)
        if not len(listing.paths):
            raise NoImages(f"data.path: {root} has no png, jpeg, webp or gif images")
        if labels is not None and labels.endswith(".csv"):
            if not Path(os.path.normpath(root / labels)).is_relative_to(os.path.normpath(root)):
                raise UsageError(f"data.labels: {labels} is outside of {root}: move it into that folder")
            items, problems = _by_csv(root / labels, listing)
        else:
            items, problems = _by_folder(root, listing, labels)
        if not len(items.rows):
            raise DiffctlError(f"data.path: none of the {len(listing.paths):,} images in {root} has a label")
        return items, [*listing.problems, *problems], listing

    def _sources(self, listing: Listing) -> dict[str, str]:
        """Return what decides the images and their classes: a corrected label often keeps the file's size."""
        labels = self.config.labels
        if labels is None or not labels.endswith(".csv"):
            return {"names and sizes": listing.content}
        return {"names and sizes": listing.content, labels: sha256_file(self.root / labels)}


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names sorted, as numbers if all are numbers."""
    different = set(names)
    numbers = all(name.isdecimal() for name in different)
    return tuple(sorted(different, key=lambda name: (int(name), name) if numbers else (0, name)))


def _split_folders(tops: Iterable[str]) -> set[str]:
    """Return the folders at the top that are splits: train with a test folder, or train with all images."""
    found = set(tops)
    splits = {top for top in found if split_of(top)}
    kinds = {split_of(top) for top in splits}
    return splits if "train" in kinds and (len(kinds) > 1 or len(found) == 1) else set()


def _by_folder(root: Path, listing: Listing, labels: str | None) -> tuple[Items, list[ImageProblem]]:
    """Take classes from the first folder of a path, below the split's folder if there are such folders."""
    counts = [count for _, count in listing.folders]
    heads = [prefix.partition("/") for prefix, _ in listing.folders]
    splits = _split_folders(top for top, _, _ in heads)
    outside = np.repeat([bool(splits) and top not in splits for top, _, _ in heads], counts)
    is_test = np.repeat([split_of(top) == "test" for top, _, _ in heads], counts)
    if splits:  # "": no class
        class_of = [below.partition("/")[0] if top in splits else "" for top, _, below in heads]
    else:
        class_of = [top for top, _, _ in heads]
    problems = [ImageProblem(name, OUTSIDE) for name in as_text(listing.paths[outside])]
    if labels == "none" or (labels is None and not any(class_of)):
        rows = np.flatnonzero(~outside)
        in_test = is_test[rows] if len(splits) > 1 else None
        return Items(rows, in_test=in_test), problems + _stray(listing, 0)
    if not any(class_of):
        raise UsageError(f"data.labels: folders, but {root} has no sub-folder with images")
    classes = class_names(class_order(name for name in class_of if name), root)
    number = {name: at for at, name in enumerate(classes)}
    found = np.repeat(np.array([number.get(name, -1) for name in class_of], dtype=np.int64), counts)
    rows = np.flatnonzero(found >= 0)
    loose = as_text(listing.paths[(found < 0) & ~outside])
    problems += [ImageProblem(name, "outside a class folder") for name in loose]
    empty = sorted(_class_folders(root, splits) - number.keys())
    problems += [ImageProblem(name, "empty class") for name in empty]
    if len(splits) == 1:
        others = sorted(top for top in SPLITS.keys() - splits if (root / top).is_dir())
        problems += [ImageProblem(top, "empty split") for top in others]
    if len(classes) == 1:
        _warn_of_subfolders(root, listing, 1 + bool(splits))
    items = Items(rows, classes, found[rows], is_test[rows] if len(splits) > 1 else None)
    return items, problems + _stray(listing, 1 + bool(splits))


def _warn_of_subfolders(root: Path, listing: Listing, depth: int) -> None:
    """Warn if the only class, `depth` folders below root, has sub-folders: they may be the classes."""
    deeper = [parts for prefix, _ in listing.folders if len(parts := prefix.split("/")[:-1]) > depth]
    if deeper:
        place, names = root.joinpath(*deeper[0][:depth]), sorted({parts[depth] for parts in deeper})
        shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
        message = f"data.path: {root} has one class, {place.name}, which has sub-folders ({shown})"
        remedy = f"if these are the classes, set data.path to {place}"
        warnings.warn(printable(f"{message}: {remedy}"), DiffctlWarning, stacklevel=2)


def _class_folders(root: Path, splits: set[str]) -> set[str]:
    """Return all class folders, with or without images."""
    folders = [entry for top in splits or {""} for entry in (root / top).iterdir() if entry.is_dir()]
    return {folder.name for folder in folders if not folder.name.startswith((".", "__"))}


def _stray(listing: Listing, depth: int) -> list[ImageProblem]:
    """Return other files among the images; a README or a list at the top is ignored."""
    return [ImageProblem(name, "not an image") for name in listing.others if name.count("/") >= max(1, depth)]


def _by_csv(path: Path, listing: Listing) -> tuple[Items, list[ImageProblem]]:
    """Take classes and splits from a CSV file; images without a label, or with two, are problems.

    Without splits in the file they are the folders of the images that have a label.
    """
    listed: dict[str, tuple[str, str | None]] = {}
    twice: set[str] = set()
    for name, label, split in read_labels(path):
        if listed.setdefault(name, (label, split)) != (label, split):
            twice.add(name)
    names = as_text(listing.paths)
    entries = [("", None) if name in twice else listed.get(name, ("", None)) for name in names]
    problems = [
        ImageProblem(name, "listed twice with different labels" if name in twice else "without a label")
        for name, (label, _) in zip(names, entries, strict=True)
        if not label
    ]
    problems += [ImageProblem(name, "missing") for name in sorted(listed.keys() - set(names))]
    splits = {row: split for row, (label, split) in enumerate(entries) if label}
    tops = {row: names[row].partition("/")[0] for row in splits}
    if not any(splits.values()) and len(_split_folders(tops.values())) > 1:
        splits = {row: split for row, top in tops.items() if (split := split_of(top))}
        problems += [ImageProblem(names[row], OUTSIDE) for row in sorted(tops.keys() - splits.keys())]
    labels = [entries[row][0] for row in splits]
    classes = class_order(class_names(sorted(set(labels)), path))
    number = {name: at for at, name in enumerate(classes)}
    found = np.array([number[label] for label in labels], dtype=np.int64)
    in_test = np.array([split == "test" for split in splits.values()]) if any(splits.values()) else None
    items = Items(np.array([*splits], dtype=np.int64), classes, found, in_test)
    return items, problems + _stray(listing, 0)


def _split_rows(items: Items, config: ImageFolderConfig) -> tuple[Indices, Indices]:
    """Return shuffled indices of training and test images: the official split, or a held-out one."""
    if items.in_test is not None:
        if config.test_fraction is not None:
            raise UsageError("data.test_fraction: these images have their own test split; leave it out")
        train, test = np.flatnonzero(~items.in_test), np.flatnonzero(items.in_test)
        if not len(train) or not len(test):
            raise DiffctlError("data.path: one of the splits train and test has no images")
        return train[shuffled(len(train), 0, 0)], test[shuffled(len(test), 0, 1)]
    return held_out_rows(items.labels, len(items.rows), config.test_fraction)


def held_out_rows(labels: Labels | None, count: int, fraction: float | None) -> tuple[Indices, Indices]:
    """Return shuffled training and test rows, stratified by class; `fraction` is a tenth by default."""
    if count < 2:
        raise DiffctlError("data.path: one image is too few, since some are held out for the test split")
    least = min(MIN_SCORED, count // 2)
    held_out = min(count - 1, max(least, round((fraction or TEST_FRACTION) * count)))
    return hold_out(labels, count, held_out, seed=0)
