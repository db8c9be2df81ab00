"""Pictures from files: a picture, a folder, an npz or a store, with labels where they are known."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion.analysis.image_inputs import known_labels
from diffusion.data.readers.listing import as_text, list_images
from diffusion.edit.pictures import in_channels
from diffusion.evaluate.adhoc import check_usable, open_images
from diffusion.images.pictures import read_picture
from diffusion.images.store import Images
from diffusion.model.model_file import ModelDescription
from diffusion.system.errors import UsageError, printable


class InputPicture(NamedTuple):
    """A picture (H, W, C) uint8 with its name, and its label where it is known in the model's classes."""

    name: str
    pixels: Images
    label: int | None = None


def read_pictures(
    source: Path, channels: int, labelled: ModelDescription, first: int | None = None
) -> list[InputPicture]:
    """Return the pictures, at most the `first` ones; a folder within a folder may name a class.

    UsageError if there is none, or one cannot be read. Other errors as `check_usable`.
    """
    if source.is_file() and source.suffix != ".npz":
        return [InputPicture(source.name, read_picture(source, None, channels))]
    if source.is_dir() and not (source / "images.npy").is_file():
        listing, classes = list_images(source), labelled.data.classes
        check_usable(source, listing.problems)
        names = as_text(listing.paths)[:first]
        if not names:
            raise UsageError(
                f"{printable(source)} has no pictures: give a picture, a folder, an npz or a store"
            )
        folders = [name.partition("/")[0] for name in names]
        labels = [classes.index(folder) if folder in classes else None for folder in folders]
        pixels = [read_picture(source / name, None, channels) for name in names]
        return [InputPicture(*one) for one in zip(names, pixels, labels, strict=True)]
    store = open_images(source)
    rows = range(min(first or len(store), len(store)))
    return [
        InputPicture(f"{source.name}[{row}]", in_channels(np.asarray(store.images[row]), channels), label)
        for row, label in zip(rows, known_labels(store, labelled, rows), strict=True)
    ]
