"""Features that were extracted once, kept by content, so that whoever scores the same images again waits for
the scores alone.

They lie in the user's cache, in a folder for each set of images and extractor, whose name is the fingerprint
of all that decides them. Its files are blocks of images, each sealed and written as soon as it is extracted:
an interrupted extraction goes on from there. What is used least is removed where all takes too much room.
"""

import contextlib
import io
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffusion.downloads.cache import cache_root
from diffusion.evaluate.features.extract import FeatureArray, Features, extract, set_progress
from diffusion.evaluate.features.extractors import Extractor
from diffusion.evaluate.features.reference_features import extraction_code
from diffusion.images.store import ImageStore
from diffusion.protocol.extractors import EVALUATION_VERSION
from diffusion.system.checksums import Corrupted, read_checksummed, write_checksummed
from diffusion.system.errors import DiffctlWarning, printable
from diffusion.system.files import disk_usage
from diffusion.system.npy_files import UNREADABLE
from diffusion.system.section import brief, fingerprint

BLOCK = 2048  # images a file; the last one holds what remains, too
MAX_BYTES = 16 * 10**9  # of all that is kept: some thirty sets of 50,000 images as 1,280 features and logits
MAX_LOGITS = 100_000  # of an image; no extractor has a tenth of them
HEADERS = 8192  # bytes that the headers of a block's arrays never take

Progress = Callable[[int, int], None]


def cache_folder() -> Path:
    """The folder of all features that are kept."""
    return cache_root() / "features"


def cached_features(
    extractor: Extractor,
    stores: Sequence[ImageStore],
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> list[Features]:
    """The features of each store, in order; what is kept of them is read, the rest extracted and kept.

    `progress` gets (done, total) of the images that are left to extract, of all stores together. A block that
    is damaged is told in a warning and extracted again, and so is what cannot be kept. DiffctlErrors as
    `extract`.
    """
    folders = [cache_folder() / _key(extractor, store) for store in stores]
    sets = dict(zip(folders, stores, strict=True))  # each once, also where both sides are the same images
    opened = {folder: CachedFeatures(folder, extractor, store) for folder, store in sets.items()}
    before, total = 0, sum(kept.left for kept in opened.values())
    for kept in opened.values():
        left = kept.left
        kept.complete(batch_size, set_progress(progress, before, total))
        before += left
    _make_room(cache_folder(), set(opened))
    return [opened[folder].features for folder in folders]


def _key(extractor: Extractor, store: ImageStore) -> str:
    """The fingerprint of what decides the features of a store."""
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
    """The features of one store as far as they lie in `folder`, read when this is made.

    `missing` are the blocks of images that are left to extract.
    """

    def __init__(self, folder: Path, extractor: Extractor, store: ImageStore) -> None:
        self.folder, self.extractor, self.store = folder, extractor, store
        self._whole: tuple[FeatureArray, ...] = ()
        with contextlib.suppress(OSError):
            os.utime(folder)  # it was used just now
        self.missing = [block for block in blocks(len(store)) if not self._read(block)]

    @property
    def left(self) -> int:
        """How many images are left to extract."""
        return sum(map(len, self.missing))

    @property
    def features(self) -> Features:
        """Those of all images, once nothing is missing."""
        assert not self.missing, "complete it first"
        return Features(*self._whole)

    def complete(self, batch_size: int | None, progress: Callable[[int], None] | None) -> None:
        """Extract and keep the missing blocks; `progress` gets how many of their images are done."""
        done = 0
        while self.missing:
            block = self.missing[0]
            images = self.store.images[block.start : block.stop]
            show = None if progress is None else _after(progress, done)
            part = extract(self.extractor, images, batch_size, show, block.start)
            try:
                self._fill(block, part)
            except Corrupted:  # what was kept is not what this extractor gives
                self._whole, self.missing, done = (), blocks(len(self.store)), 0
                continue
            self._save(block, part)
            done += len(block)
            del self.missing[0]

    def _fill(self, block: range, part: Features) -> None:
        """Put a block's features where they belong; Broken where they do not go with those of others."""
        arrays = [part.features, *([] if part.logits is None else [part.logits])]
        shapes = [(len(self.store), *array.shape[1:]) for array in arrays]
        self._whole = self._whole or tuple(np.empty(shape, np.float32) for shape in shapes)
        if [whole.shape for whole in self._whole] != shapes:
            raise Corrupted(
                f"it holds arrays of {[array.shape for array in arrays]}, and other blocks do not"
            )
        for whole, array in zip(self._whole, arrays, strict=True):
            whole[block.start : block.stop] = array

    def _read(self, block: range) -> bool:
        """Whether a block is kept and whole; it is filled in then."""
        path = self._path(block)
        try:
            self._fill(block, self._opened(block, path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (Corrupted, OSError) as error:
            told = f"the features kept in {printable(path)} are damaged ({error}): they are extracted again"
            warnings.warn(told, DiffctlWarning, stacklevel=2)
            return False
        return True

    def _opened(self, block: range, path: Path) -> Features:
        spec, count = self.extractor.spec, len(block)
        room = 4 * count * (spec.features + MAX_LOGITS * (spec.score is not None)) + HEADERS
        file = io.BytesIO(read_checksummed(path, _name(path), most=room))
        features = _array(file, count, spec.features)
        return Features(features, None if spec.score is None else _array(file, count))

    def _save(self, block: range, part: Features) -> None:
        path = self._path(block)

        def write(file: io.BytesIO) -> None:
            for array in (part.features, part.logits):
                if array is not None:
                    np.save(file, array, allow_pickle=False)

        try:
            write_checksummed(path, write, _name(path))
        except OSError as error:
            told = (
                f"features cannot be kept in {printable(self.folder)} ({error.strerror}): they are extracted "
                "again the next time; make room there, or set DIFFCTL_CACHE to another folder"
            )
            warnings.warn(told, DiffctlWarning, stacklevel=2)

    def _path(self, block: range) -> Path:
        return self.folder / f"{block.start:09d}-{block.stop:09d}.features"


def blocks(count: int) -> list[range]:
    """The blocks of so many images: none of them has fewer than two, which have no spread."""
    starts = range(0, max(1, count // BLOCK) * BLOCK, BLOCK)
    return [range(start, count if start == starts[-1] else start + BLOCK) for start in starts]


def _array(file: io.BytesIO, count: int, width: int | None = None) -> FeatureArray:
    """The next array of a block, float32 of so many rows; Broken for any other."""
    try:
        array: FeatureArray = np.load(file, allow_pickle=False)
    except UNREADABLE as error:
        raise Corrupted(f"it holds no array: {brief(error, str)}") from None
    shape = (count, width or (array.shape[1] if array.ndim == 2 else 0))
    if array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
        raise Corrupted(f"it holds {array.dtype} {array.shape}, want finite float32 {shape}")
    return array


def _after(progress: Callable[[int], None], before: int) -> Callable[[int], None]:
    return lambda done: progress(before + done)


def _name(path: Path) -> str:
    """What a block's seal calls it: its folder bears the fingerprint of images and extractor."""
    return f"{path.parent.name}/{path.name}"


def _make_room(root: Path, used: set[Path]) -> None:
    """Remove the folders that were used longest ago until the others fit; those in use stay."""
    with contextlib.suppress(OSError):  # another process removes one, too
        folders = sorted((path for path in root.iterdir() if path.is_dir()), key=_used_at, reverse=True)
        taken = sum(disk_usage(folder) for folder in used)
        for folder in folders:
            if folder not in used:
                taken += disk_usage(folder)
                if taken > MAX_BYTES:
                    shutil.rmtree(folder, ignore_errors=True)


def _used_at(folder: Path) -> int:
    return folder.stat().st_mtime_ns
