"""A cache of extracted features in the user's cache folder, keyed by content.

Each pair of images and extractor has a folder, named by the fingerprint of everything that decides the
features. Its files are checksummed blocks of images, written as soon as they are extracted, so that an
interrupted extraction resumes. The least recently used folders are removed when the cache is too large.
"""

import contextlib
import io
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffusion.downloads.fetch import cache_root
from diffusion.evaluate.features.extract import FeatureArray, Features, extract, offset_progress
from diffusion.evaluate.features.extractors import Extractor
from diffusion.evaluate.features.reference_features import extraction_code
from diffusion.images.digests import UNREADABLE
from diffusion.images.store import ImageStore
from diffusion.protocol.extractors import EVALUATION_VERSION
from diffusion.system.checksums import Corrupted, read_checksummed, write_checksummed
from diffusion.system.errors import DiffctlWarning, printable
from diffusion.system.files import disk_usage
from diffusion.system.section import brief, fingerprint

BLOCK = 2048  # images per file; the last file also holds the remainder
MAX_BYTES = 16 * 10**9  # of the cache: about 30 sets of 50,000 images with 1,280 features and logits
MAX_LOGITS = 100_000  # per image; the extractors have at most a tenth
HEADERS = 8192  # bytes, more than the headers of a block's arrays

Progress = Callable[[int, int], None]


def cache_folder() -> Path:
    """Return the folder of all cached features."""
    return cache_root() / "features"


def cached_features(
    extractor: Extractor,
    stores: Sequence[ImageStore],
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> list[Features]:
    """Return the features of each store, in order. Cached features are read, the others extracted and cached.

    `progress` receives (done, total) of the images left to extract. A damaged block is extracted again, with
    a warning; so is one that cannot be written, the next time. DiffctlErrors as `extract`.
    """
    folders = [cache_folder() / _key(extractor, store) for store in stores]
    sets = dict(zip(folders, stores, strict=True))  # equal images on both sides are extracted once
    opened = {folder: CachedFeatures(folder, extractor, store) for folder, store in sets.items()}
    before, total = 0, sum(cached.left for cached in opened.values())
    for cached in opened.values():
        left = cached.left
        cached.complete(batch_size, offset_progress(progress, before, total))
        before += left
    _evict(cache_folder(), set(opened))
    return [opened[folder].features for folder in folders]


def _key(extractor: Extractor, store: ImageStore) -> str:
    """Return the fingerprint of everything that decides the features of a store."""
    return fingerprint(
        {
            "digest": store.digest,
            "extractor": extractor.spec.name,
            "weights_sha256": extractor.weights_sha256,
            "dtype": "float32",
            "evaluation": EVALUATION_VERSION,
            "code": extraction_code(extractor.spec),
        }
    )


class CachedFeatures:
    """The cached features of one store, read on construction. `missing` are the blocks left to extract."""

    def __init__(self, folder: Path, extractor: Extractor, store: ImageStore) -> None:
        self.folder, self.extractor, self.store = folder, extractor, store
        self._arrays: tuple[FeatureArray, ...] = ()
        with contextlib.suppress(OSError):
            os.utime(folder)  # marks it as recently used
        self.missing = [block for block in blocks(len(store)) if not self._read(block)]

    @property
    def left(self) -> int:
        """The number of images left to extract."""
        return sum(map(len, self.missing))

    @property
    def features(self) -> Features:
        """The features of all images, after `complete`."""
        assert not self.missing, "call complete first"
        return Features(*self._arrays)

    def complete(self, batch_size: int | None, progress: Callable[[int], None] | None) -> None:
        """Extract and write the missing blocks. `progress` receives the number of images done."""
        done = 0
        while self.missing:
            block = self.missing[0]
            images = self.store.images[block.start : block.stop]
            show = None if progress is None else _shifted(progress, done)
            part = extract(self.extractor, images, batch_size, show, block.start)
            try:
                self._fill(block, part)
            except Corrupted:  # the blocks read before have other shapes
                self._arrays, self.missing, done = (), blocks(len(self.store)), 0
                continue
            self._write(block, part)
            done += len(block)
            del self.missing[0]

    def _fill(self, block: range, part: Features) -> None:
        """Copy a block's features into the arrays of all images; Corrupted if the shapes differ."""
        parts = [part.features, *([] if part.logits is None else [part.logits])]
        shapes = [(len(self.store), *array.shape[1:]) for array in parts]
        self._arrays = self._arrays or tuple(np.empty(shape, np.float32) for shape in shapes)
        if [array.shape for array in self._arrays] != shapes:
            raise Corrupted(
                f"its arrays are {[array.shape for array in parts]}, unlike those of other blocks"
            )
        for array, values in zip(self._arrays, parts, strict=True):
            array[block.start : block.stop] = values

    def _read(self, block: range) -> bool:
        """Read a block; return whether it exists and is intact."""
        path = self._path(block)
        spec, count = self.extractor.spec, len(block)
        size = 4 * count * (spec.features + MAX_LOGITS * (spec.score is not None)) + HEADERS
        try:
            file = io.BytesIO(read_checksummed(path, _name(path), max_bytes=size))
            features = _next_array(file, count, spec.features)
            logits = None if spec.score is None else _next_array(file, count)
            self._fill(block, Features(features, logits))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (Corrupted, OSError) as error:
            message = f"the cached features in {printable(path)} are damaged ({error}): extracting them again"
            warnings.warn(message, DiffctlWarning, stacklevel=2)
            return False
        return True

    def _write(self, block: range, part: Features) -> None:
        path = self._path(block)

        def write(file: io.BytesIO) -> None:
            for array in (part.features, part.logits):
                if array is not None:
                    np.save(file, array, allow_pickle=False)

        try:
            write_checksummed(path, write, _name(path))
        except OSError as error:
            message = (
                f"features cannot be cached in {printable(self.folder)} ({error.strerror}): "
                "free some space there, or set DIFFCTL_CACHE to another folder"
            )
            warnings.warn(message, DiffctlWarning, stacklevel=2)

    def _path(self, block: range) -> Path:
        return self.folder / f"{block.start:09d}-{block.stop:09d}.features"


def blocks(count: int) -> list[range]:
    """Return the blocks of `count` images. None has fewer than two images, unless there are fewer."""
    starts = range(0, max(1, count // BLOCK) * BLOCK, BLOCK)
    return [range(start, count if start == starts[-1] else start + BLOCK) for start in starts]


def _next_array(file: io.BytesIO, count: int, width: int | None = None) -> FeatureArray:
    """Read the next array of a block; Corrupted unless it is finite float32 (count, width)."""
    try:
        array: FeatureArray = np.load(file, allow_pickle=False)
    except UNREADABLE as error:
        raise Corrupted(f"it holds no array: {brief(error, str)}") from None
    shape = (count, width or (array.shape[1] if array.ndim == 2 else 0))
    if array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
        raise Corrupted(f"it holds {array.dtype} {array.shape}, want finite float32 {shape}")
    return array


def _shifted(progress: Callable[[int], None], before: int) -> Callable[[int], None]:
    return lambda done: progress(before + done)


def _name(path: Path) -> str:
    """Return the block's name in its checksum, which contains the fingerprint of images and extractor."""
    return f"{path.parent.name}/{path.name}"


def _evict(root: Path, used: set[Path]) -> None:
    """Remove the least recently used folders until the cache fits. Folders in use stay."""
    with contextlib.suppress(OSError):  # another process may remove one, too
        folders = [path for path in root.iterdir() if path.is_dir() and path not in used]
        size = sum(disk_usage(folder) for folder in used)
        for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime_ns, reverse=True):
            size += disk_usage(folder)
            if size > MAX_BYTES:
                shutil.rmtree(folder, ignore_errors=True)
