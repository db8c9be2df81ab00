"""Image files as rows of a split."""

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.data.holdout import Indices
from diffusion.data.readers.listing import FilePaths
from diffusion.data.readers.resize import decode
from diffusion.data.source import Job, Rows
from diffusion.images.decode import MAX_BYTES, BadImage
from diffusion.system.regular_files import read_regular


class ImageFileReader:
    """A reader of selected files below `root`, in order, as squares of `size` with `channels`."""

    heavy = True

    def __init__(self, root: Path, paths: FilePaths, rows: Indices, size: int, channels: int) -> None:
        self.root = root
        self.paths = paths
        self.rows = rows
        self.size = size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.rows)

    def job(self, start: int, stop: int) -> Job:
        """Return a job that decodes files `start` to `stop`."""
        paths = self.paths.take(self.rows[start:stop])
        return partial(read_images, self.root, paths, self.size, self.channels)

    def names(self, rows: Indices) -> list[str]:
        """Return the files' paths below the root."""
        return self.paths.names(self.rows[rows])


def read_images(root: Path, paths: Sequence[bytes], size: int, channels: int) -> Rows:
    """Return the files' images (n, size, size, channels) and SHA-256; unreadable ones are in `bad`."""
    folder = os.fsencode(root) + b"/"
    return images_of([partial(_read, folder + path) for path in paths], size, channels)


def images_of(files: Sequence[Callable[[], bytes]], size: int, channels: int) -> Rows:
    """Decode files given by functions that return their content or raise BadImage; as `read_images`."""
    # One strip for all: exporting pixels of each small image would cost a twentieth of decoding it.
    strip = Image.new("L" if channels == 1 else "RGB", (size, size * len(files)))
    digests, bad = [], {}
    with warnings.catch_warnings(action="ignore"):  # what Pillow warns about is refused or harmless
        for index, read in enumerate(files):
            digest = bytes(32)
            try:
                content = read()
                digest = hashlib.sha256(content).digest()
                strip.paste(decode(content, size, channels), (0, size * index))
            except BadImage as error:
                bad[index] = str(error)
            digests.append(digest)
    images = np.asarray(strip).reshape(len(files), size, size, channels)
    return Rows(images, bad, np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32))


def _read(path: bytes) -> bytes:
    try:
        return read_regular(path, MAX_BYTES)
    except OSError as error:
        raise BadImage(f"not readable ({error.strerror})") from None
