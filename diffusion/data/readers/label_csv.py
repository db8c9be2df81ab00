"""A CSV file with the class of each image, and its split if there is an official one."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion.system.errors import UsageError, printable
from diffusion.system.regular_files import open_regular

SPLITS = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}
MAX_LINE = 1 << 16  # characters; a path and a class take a few hundred
FILE_COLUMNS, LABEL_COLUMNS = ("file", "filename", "path", "image"), ("label", "class")


class Row(NamedTuple):
    """One line: an empty label means none; `split` is None, train or test."""

    file: str
    label: str
    split: str | None


def read_labels(path: Path) -> Iterator[Row]:
    """Yield the rows one by one.

    UsageError if the file is missing, not CSV in UTF-8, or lacks a column.
    """
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(_lines(file))
            columns = list(reader.fieldnames or [])
            name_column = _column(path, columns, FILE_COLUMNS)
            label_column = _column(path, columns, LABEL_COLUMNS)
            for values in reader:
                name = (values[name_column] or "").strip().replace("\\", "/").removeprefix("./")
                yield Row(name, (values[label_column] or "").strip(), _split(path, values.get("split")))
    except FileNotFoundError:
        raise UsageError(f"data.labels: {path} does not exist; it must be in data.path") from None
    except OSError as error:
        raise UsageError(
            f"data.labels: {path} cannot be read ({error.strerror}): give access to it"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"data.labels: {path} is not readable as CSV in UTF-8 ({error})") from None


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    """Yield lines; csv.Error for one that is too long, before the rest of it is read."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise csv.Error(f"a line has more than {MAX_LINE:,} characters")
        yield line


def _column(path: Path, columns: Sequence[str], names: Sequence[str]) -> str:
    for column in columns:
        if column.strip().lower() in names:
            return column
    raise UsageError(f"data.labels: {path} needs a first line with a column {' or '.join(names)}")


def _split(path: Path, name: str | None) -> str | None:
    if not name or not name.strip():
        return None
    if name.strip() not in SPLITS:
        raise UsageError(
            f"data.labels: {path}: split {printable(name)[:80]!r} is not one of {', '.join(SPLITS)}"
        )
    return SPLITS[name.strip()]
