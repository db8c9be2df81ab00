"""A dataset of Hugging Face's `datasets`: a saved folder, a folder of parquet files, or a hub name."""

import hashlib
import logging
import operator
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from diffusion.data.data_config import PhotographsConfig
from diffusion.data.readers.image_files import images_of
from diffusion.data.source import (
    DatasetInfo,
    ImageProblem,
    Indices,
    Job,
    RawData,
    Rows,
    Split,
    class_names,
    shuffled,
)
from diffusion.data.sources.image_folder import class_order, held_out_rows
from diffusion.downloads.fetch import OnProgress, cache_root, raw_folder
from diffusion.images.image_size import Size
from diffusion.images.pictures import MAX_BYTES, BadImage
from diffusion.images.store import Labels
from diffusion.layout import check_raw_folder, home
from diffusion.system.errors import DiffctlError, TemporaryError, UsageError, printable, reason
from diffusion.system.section import NotBool, ShortText, brief

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

INSTALL = "datasets is not installed: `pip install 'diffctl[hf]'`, then run this again"
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")  # on the hub
HELD_OUT = ("test", "validation", "valid", "val")  # names of test splits, the first one with labels is used
IMAGES, LABELS = ("image", "img"), ("label", "labels", "class")  # names, if types do not suffice
NO_LABELS = "none"


class HubConfig(PhotographsConfig):
    """`path` is a folder with a dataset, or its name on the hub; `subset` selects one of several there.

    `revision` is a commit hash, a tag or a branch on the hub; None: the newest. `image` and `label` name the
    columns, None where their types identify them; `label: none` leaves labels out. `test_fraction` is held
    out if the dataset has no test split.
    """

    subset: ShortText | None = None
    revision: Annotated[ShortText, Field(min_length=1)] | None = Field(default=None, exclude_if=operator.not_)
    image: ShortText | None = None
    label: ShortText | None = None
    test_fraction: Annotated[float, Field(gt=0, lt=1), NotBool] | None = None

    @model_validator(mode="after")
    def _is_named(self) -> Self:
        if self.path is None:
            raise ValueError(f"path: {self.name} needs a dataset's folder, or its name on the hub")
        return self


class Table(NamedTuple):
    """A split of the dataset: the image column, the usable rows, a label for each of them, and the others."""

    dataset: "Dataset"
    image: str
    rows: Indices
    labels: Labels | None
    problems: list[ImageProblem]


def _problems(tables: list[Table]) -> list[ImageProblem]:
    return [problem for table in tables for problem in table.problems]


class Hub:
    """Images are read from the dataset's files, a few at a time."""

    def __init__(self, config: HubConfig) -> None:
        self.config, self.folder = config, raw_folder(config.name, config.path)

    def info(self) -> DatasetInfo:
        """Return the contents of a folder; a name on the hub is resolved when the data stage runs."""
        if not self.folder.is_dir():
            blocked = "its content is unknown until `diffctl stage data` gets it from the hub"
            return DatasetInfo(0, None, 0, blocked=blocked)
        try:
            tables, classes = self._tables()
        except DiffctlError as error:
            is_unreadable = bool(_sources(self.folder)) and str(error) != INSTALL
            return DatasetInfo(0, None, 0, blocked=str(error), is_unreadable=is_unreadable)
        images, problems = sum(len(one.rows) for one in tables), _problems(tables)
        return DatasetInfo(images, None, len(classes), problems=problems, sources=_sources(self.folder))

    def open(self, notify: OnProgress | None = None) -> RawData:
        """Open the dataset: classes in its own order, else sorted; its own test split, else a tenth."""
        tables, classes = self._tables()
        train, test, fraction = tables[0], tables[-1], self.config.test_fraction
        if len(tables) == 1:
            orders = held_out_rows(train.labels, len(train.rows), fraction)
        elif fraction is not None:
            raise UsageError("data.test_fraction: this dataset has its own test split; leave it out")
        else:
            orders = shuffled(len(train.rows), 0, 0), shuffled(len(test.rows), 0, 1)
        splits = self._split(train, orders[0]), self._split(test, orders[1])
        identity = " ".join(map(_identity, tables))
        return RawData(classes, None, *splits, _sources(self.folder), identity, _problems(tables))

    def _split(self, table: Table, order: Indices) -> Split:
        reader = HubReader(table, table.rows[order], self.config.size, self.config.channels or 3)
        return Split(reader, None if table.labels is None else table.labels[order])

    def _tables(self) -> tuple[list[Table], tuple[str, ...]]:
        """Return the training split, with the test split if there is one, and the classes."""
        config = self.config
        check_raw_folder(self.folder, home(Path.cwd()), "data.path:")
        with _explained(config):
            splits = self._load()
            names = list(splits)
            train = "train" if "train" in names else names[0]
            held_out = [name for name in HELD_OUT if name in names and name != train]
            image, label = _columns(splits[train], config)
            classes = _class_names([splits[name] for name in (train, *held_out[:1])], label)
            tables = [_table(train, splits[train], image, label, classes)]
            for name in held_out:  # the labels of a competition's test split are not published
                tables[1:] = [_table(name, splits[name], image, label, classes)]
                if len(tables[1].rows):
                    break
        if not all(len(table.rows) for table in tables):
            raise DiffctlError(f"data.path: a split of {config.path} has no images that can be used")
        return tables, class_names(classes, Path(str(config.path)))

    def _load(self) -> "DatasetDict":
        """Return the dataset's splits by name."""
        import datasets

        datasets.disable_progress_bars()
        for library in ("datasets", "huggingface_hub"):  # they log every attempt to reach the hub
            logging.getLogger(library).setLevel(logging.ERROR)
        config, folder = self.config, self.folder
        name = str(folder if folder.is_dir() else config.path)
        if config.revision is not None and folder.is_dir():
            raise UsageError(f"data.revision: {config.path} is a folder and has no revision: leave it out")
        if not folder.is_dir() and not NAME.fullmatch(name):
            raise UsageError(f"data.path: {printable(name)} is neither a folder nor a valid dataset name")
        loaded: DatasetDict | Dataset
        if any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(folder)
        else:
            cache = str(cache_root() / "hf")
            loaded = datasets.load_dataset(name, config.subset, revision=config.revision, cache_dir=cache)
        return loaded if isinstance(loaded, dict) else datasets.DatasetDict({"train": loaded})


class HubReader:
    """A reader of selected rows, in order, as images of `size` (H, W) with `channels`."""

    heavy = True

    def __init__(self, table: Table, rows: Indices, size: Size, channels: int) -> None:
        self.table, self.rows, self.size, self.channels = table, rows, size, channels

    def __len__(self) -> int:
        return len(self.rows)

    def job(self, start: int, stop: int) -> Job:
        """Return a job that decodes rows `start` to `stop`; of the dataset only file locations are sent."""
        dataset, rows = self.table.dataset, self.rows[start:stop].tolist()
        return partial(read_rows, dataset, self.table.image, rows, self.size, self.channels)

    def names(self, rows: Indices) -> list[str]:
        """Return the rows' numbers in the dataset."""
        return [f"row {row}" for row in self.rows[rows].tolist()]


def read_rows(dataset: "Dataset", column: str, rows: list[int], size: Size, channels: int) -> Rows:
    """Return the images of some rows (n, H, W, channels); unreadable ones are in `bad`."""
    return images_of([partial(_content, cell) for cell in dataset[rows][column]], size, channels)


def _content(cell: Any) -> bytes:
    """Return the bytes of an image file; BadImage if the dataset has only its name."""
    content = cell.get("bytes") if isinstance(cell, dict) else None
    if not isinstance(content, bytes):
        raise BadImage("not in the dataset itself" if cell else "without an image")
    if len(content) > MAX_BYTES:
        raise BadImage("larger than any image")
    return content


@contextmanager
def _explained(config: HubConfig) -> Iterator[None]:
    """Turn errors of the library into DiffctlError, or TemporaryError if the hub is unreachable."""
    try:
        yield
    except DiffctlError:
        raise
    except ImportError as error:
        raise DiffctlError(INSTALL) from error
    except ConnectionError as error:
        found = f"data.path: the hub cannot be reached for {config.path} ({brief(error, reason)})"
        raise TemporaryError(f"{found}: try again later, or give a folder with the dataset") from None
    except Exception as error:  # the library, pyarrow and the hub's client document no types
        found = f"data.path: {config.path} cannot be read as a dataset ({brief(error, reason)})"
        raise DiffctlError(f"{found}: give a saved folder, a folder of parquet files, or a name") from None


def _columns(dataset: "Dataset", config: HubConfig) -> tuple[str, str | None]:
    """Return the columns of images and labels: the named ones, else the only ones by type or name."""
    from datasets import ClassLabel, Image

    def column(field: str, named: str | None, kind: type, names: tuple[str, ...]) -> str | None:
        features = dataset.features
        listed = ", ".join(map(printable, features))
        if named is not None and named not in features:
            raise UsageError(f"data.{field}: there is no column {named!r}; there are {listed}")
        found = [name for name, feature in features.items() if isinstance(feature, kind)]
        found = [named] if named else found or [name for name in names if name in features]
        if len(found) > 1:
            raise UsageError(f"data.{field}: name the column; {', '.join(found)} are candidates")
        if not found and field == "image":
            raise UsageError(f"data.{field}: name the column; none of {listed} is a candidate")
        return found[0] if found else None

    image = column("image", config.image, Image, IMAGES)
    label = None if config.label == NO_LABELS else column("label", config.label, ClassLabel, LABELS)
    return str(image), label


def _class_names(splits: list["Dataset"], label: str | None) -> list[str]:
    """Return class names in label order: the column's own, else the sorted values."""
    from datasets import ClassLabel

    if label is None:
        return []
    if isinstance(kind := splits[0].features[label], ClassLabel):
        return list(kind.names)
    values: set[Any] = set().union(*(split.unique(label) for split in splits))
    if odd := [value for value in values if not isinstance(value, str | int | None)]:
        raise UsageError(f"data.label: {label} has the value {brief(odd[0])}, which is no class")
    return list(class_order(map(str, values - {None})))


def _table(name: str, dataset: "Dataset", image: str, label: str | None, classes: list[str]) -> Table:
    from datasets import ClassLabel, Image

    images = dataset.select_columns([image]).cast_column(image, Image(decode=False))
    rows = np.arange(len(images))
    if label is None:
        return Table(images, image, rows, None, [])
    values = list(dataset.select_columns([label])[label])
    kind, number = dataset.features[label], {one: at for at, one in enumerate(classes)}
    if not isinstance(kind, ClassLabel):
        values = [number.get(str(value), -1) for value in values]
    elif list(kind.names) != classes:  # of a split that was encoded by itself
        own = [number.get(name, -1) for name in kind.names]
        values = [own[value] if value is not None and 0 <= value < len(own) else -1 for value in values]
    labels = np.array([-1 if value is None else value for value in values], dtype=np.int64)
    known = (labels >= 0) & (labels < len(classes))
    problems = [ImageProblem(f"{name} {row}", "without a label") for row in rows[~known].tolist()]
    return Table(images, image, rows[known], labels[known], problems)


def _sources(folder: Path) -> dict[str, str]:
    """Return a digest of a folder's file names and sizes; empty for the hub."""
    files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else []
    listed = "".join(f"{file.relative_to(folder)} {file.stat().st_size}\n" for file in files)
    return {"names and sizes": hashlib.sha256(os.fsencode(listed)).hexdigest()} if files else {}


def _identity(table: Table) -> str:
    """Return the files to read with size and time."""
    files = [Path(file["filename"]) for file in table.dataset.cache_files]
    described = [(os.fspath(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{described} {table.image}"
