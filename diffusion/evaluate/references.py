"""Making a reference, by its stage or for the scores of a training, with a cache of extracted features.

The cache is in the user's cache folder. Each pair of images and extractor has a folder, named by the
fingerprint of everything that decides the features. Its files are checksummed blocks of images, written as
soon as they are extracted, so that an interrupted extraction resumes. The least recently used folders are
removed when the cache is too large.
"""

import contextlib
import os
import shutil
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from diffusion.downloads.fetch import cache_root
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extractors import (
    Extractor,
    Features,
    Progress,
    ProgressCounter,
    extract,
    space_extractor,
)
from diffusion.evaluate.features.reference_features import (
    Reference,
    extraction,
    make_reference_of,
    matching_reference,
    open_reference,
    reference_splits,
    write_reference,
)
from diffusion.images.store import ImageStore
from diffusion.system.checksums import Corrupted, name_in_folder, read_checksummed, write_checksummed
from diffusion.system.errors import DiffctlWarning, printable
from diffusion.system.files import atomic_folder, disk_usage
from diffusion.system.section import fingerprint

BLOCK = 2048  # images per file; the last file also holds the remainder
MAX_BYTES = 16 * 10**9  # of the cache: about 30 sets of 50,000 images with 1,280 features and logits


def make_reference(
    section: EvaluateConfig, prepared: Path, out: Path, progress: Progress | None = None
) -> None:
    """Write the folder `out` with the features of both splits, in each space.

    All weights are loaded first. Cached features are read, the others extracted and cached. `progress`
    receives (done, total) of the images to extract; the total grows with each space.
    """
    extractors = [space_extractor(space) for space in section.spaces]
    stores = reference_splits(prepared, section.reference, section.reference_images)
    before = extracted = 0

    def show(done: int, total: int) -> None:
        nonlocal extracted
        extracted = before + done
        if progress is not None:
            progress(extracted, before + total)

    with atomic_folder(out) as folder:
        for number, extractor in enumerate(extractors):
            features = cached_features(extractor, stores, section.batch_size, show)
            before = extracted
            reference = make_reference_of(extractor, stores, features)
            write_reference(folder / extractor.spec.name if number else folder, reference)


def find_or_make_reference(
    section: EvaluateConfig,
    extractor: Extractor,
    prepared: Path,
    places: Sequence[Path],
    progress: Progress | None = None,
) -> Reference:
    """Return the reference from the first folder that has it, else make it in the last folder."""
    for place in places:
        found = matching_reference(place, extractor, section.reference, prepared, section.reference_images)
        if found is not None:
            return found
    make_reference(section.model_copy(update={"extra_extractors": ()}), prepared, places[-1], progress)
    return open_reference(places[-1], extractor, section.reference, prepared, section.reference_images)


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
    made = {"dtype": "float32", "torch": version("torch"), **extraction(extractor)}
    root = cache_root() / "features"
    folders = [root / fingerprint({**made, "digest": store.digest}) for store in stores]
    sets = dict(zip(folders, stores, strict=True))  # equal images on both sides are extracted once
    found = {}
    for folder, store in sets.items():
        with contextlib.suppress(OSError):
            os.utime(folder)  # marks it as recently used
        found[folder] = {block: _read(_path(folder, block), block, extractor) for block in blocks(len(store))}
    left = [(key, block) for key, parts in found.items() for block in parts if parts[block] is None]
    counter = ProgressCounter(progress, sum(len(block) for _, block in left))
    for folder, block in left:
        images = sets[folder].images[block.start : block.stop]
        part = found[folder][block] = extract(extractor, images, batch_size, counter.add)
        _write(_path(folder, block), part)
    _evict(root, set(sets))
    joined = {folder: _joined([part for part in parts.values() if part]) for folder, parts in found.items()}
    return [joined[folder] for folder in folders]


def blocks(count: int) -> list[range]:
    """Return the blocks of `count` images; each has at least two, unless there is only one."""
    starts = range(0, max(1, count // BLOCK) * BLOCK, BLOCK)
    return [range(start, count if start == starts[-1] else start + BLOCK) for start in starts]


def _read(path: Path, block: range, extractor: Extractor) -> Features | None:
    """Return the features in a file, None if it is missing or damaged."""
    size = extractor.spec.features
    try:
        arrays = load(read_checksummed(path, name_in_folder(path)))
        features, logits = arrays["features"], arrays.get("logits")
        if features.shape != (len(block), size):
            raise Corrupted(f"it holds {features.shape}, want {(len(block), size)}")
        return Features(features, logits)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (Corrupted, SafetensorError, KeyError, OSError) as error:
        message = f"the cached features in {printable(path)} are damaged ({error}): extracting them again"
        warnings.warn(message, DiffctlWarning, stacklevel=3)
        return None


def _write(path: Path, part: Features) -> None:
    arrays = {"features": part.features} | ({} if part.logits is None else {"logits": part.logits})
    try:
        write_checksummed(path, lambda file: file.write(save(arrays)), name_in_folder(path))
    except OSError as error:
        found = f"features cannot be cached in {printable(path.parent)} ({error.strerror})"
        warnings.warn(f"{found}: free some space, or set DIFFCTL_CACHE", DiffctlWarning, stacklevel=3)


def _joined(parts: Sequence[Features]) -> Features:
    logits = [part.logits for part in parts if part.logits is not None]
    features = np.concatenate([part.features for part in parts])
    return Features(features, np.concatenate(logits) if logits else None)


def _path(folder: Path, block: range) -> Path:
    return folder / f"{block.start:09d}-{block.stop:09d}.features"


def _evict(root: Path, used: set[Path]) -> None:
    """Remove the least recently used folders until the cache fits. Folders in use stay."""
    with contextlib.suppress(OSError):  # another process may remove one, too
        folders = [path for path in root.iterdir() if path.is_dir() and path not in used]
        size = sum(disk_usage(folder) for folder in used)
        for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime_ns, reverse=True):
            size += disk_usage(folder)
            if size > MAX_BYTES:
                shutil.rmtree(folder, ignore_errors=True)
