"""Filled splits to stores: bad rows left out, everything counted and hashed."""

import hashlib
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from diffusion.data.data_config import DataConfig
from diffusion.data.journal import SplitTarget
from diffusion.data.readers.image_files import transforms
from diffusion.data.source import Problem, RawData, Split, count_problems, write_list
from diffusion.images.store import Labels, combine_digests, describe_store
from diffusion.system.errors import DiffctlError

LISTED = 10_000  # maximum copies in duplicates.csv


class FilledSplit(NamedTuple):
    """A split with all rows on disk; `bad` rows hold zeros since they could not be read."""

    name: str
    split: Split
    target: SplitTarget
    bad: dict[int, str]

    def problems(self) -> list[Problem]:
        """Return the bad rows by file name."""
        names = self.split.reader.names(np.array([*self.bad], dtype=np.int64))
        return [Problem(name, why) for name, why in zip(names, self.bad.values(), strict=True)]

    def good(self) -> NDArray[np.bool_]:
        """Return a mask of the rows with an image."""
        mask = np.ones(self.target.shape[0], dtype=bool)
        mask[list(self.bad)] = False
        return mask

    def labels(self) -> Labels | None:
        """Return the labels of the good rows."""
        return None if self.split.labels is None else self.split.labels[self.good()]


class Scanned(NamedTuple):
    """The good rows of a split: final labels, shape, content digest, image keys, hash of the raw files."""

    labels: Labels | None
    shape: tuple[int, ...]
    digest: str
    keys: NDArray[np.uint64]
    files: str | None


def write_stores(
    out: Path, config: DataConfig, raw: RawData, filled: Sequence[FilledSplit], problems: Sequence[Problem]
) -> None:
    """Write a store per split into `out`, and skipped.csv and duplicates.csv if there are any.

    A class without images is left out. DiffctlError if a split has no image left.
    """
    classes, new_label = _classes(raw, filled) if problems else (list(raw.classes), None)
    scanned = {part.name: _scan(part, new_label) for part in filled}
    sources = dict(raw.sources) | {
        f"{split}: {len(scan.keys):,} files": scan.files for split, scan in scanned.items() if scan.files
    }
    for part in filled:
        scan = scanned[part.name]
        folder = out / part.name
        folder.mkdir()
        meta = {
            "name": config.name,
            "split": part.name,
            "options": config.own_options(),
            "classes": classes,
            "counts": [] if scan.labels is None else np.bincount(scan.labels, None, len(classes)).tolist(),
            "image_size": scan.shape[1],
            "channels": scan.shape[3],
            "transforms": transforms(raw.shape, scan.shape[1], scan.shape[3]),
            "sources": sources,
            "duplicates": _duplicates(part.name, scanned),
            "skipped": count_problems(problems),
        }
        if part.name == "train":
            meta["pixel_std"] = pixel_std(_good_images(part))
        describe_store(folder, scan.labels, meta, len(scan.keys), scan.digest)
    if problems:
        write_list(out / "skipped.csv", problems)
    if copies := _copies(filled, scanned):
        write_list(out / "duplicates.csv", copies)
    for part in filled:
        _place_images(part.target, part.good(), out / part.name / "images.npy")


def pixel_std(images: Iterable[NDArray[np.uint8]]) -> float:
    """Return the pixels' standard deviation in [−1, 1], of four digits: EDM's σ_data (2206.00364, F.6)."""
    counts = sum(np.bincount(np.asarray(some).reshape(-1), minlength=256) for some in images)
    values = np.arange(256) / 127.5 - 1
    mean = np.average(values, weights=counts)
    return float(f"{math.sqrt(np.average((values - mean) ** 2, weights=counts)):.4g}")


def _scan(part: FilledSplit, new_label: Labels | None) -> Scanned:
    """Read the digests of the good rows; DiffctlError if there are none."""
    good, labels = part.good(), part.labels()
    if not good.any():
        raise DiffctlError(f"no image of the {part.name} split can be used")
    if labels is not None and new_label is not None:
        labels = new_label[labels]
    shape = (int(good.sum()), *part.target.shape[1:])
    digests = np.memmap(part.target.digests, np.uint8, "r").reshape(-1, 64)

    def kept(columns: slice) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(good), 8192):
            rows = slice(start, start + 8192)
            yield np.ascontiguousarray(digests[rows, columns][good[rows]])

    files, has_files = hashlib.sha256(), False
    for some in kept(slice(32, None)):
        files.update(some.data)
        has_files = has_files or bool(some.any())
    keys = np.concatenate([some.view(np.uint64)[:, 0] for some in kept(slice(8))])
    digest = combine_digests(shape, kept(slice(32)), labels)
    return Scanned(labels, shape, digest, keys, files.hexdigest() if has_files else None)


def _classes(raw: RawData, filled: Sequence[FilledSplit]) -> tuple[list[str], Labels | None]:
    """Return the classes that still have images, and the new label of each old one (None: unchanged)."""
    found = [labels for part in filled if (labels := part.labels()) is not None]
    if not found:
        return [], None
    kept = np.bincount(np.concatenate(found), minlength=len(raw.classes)) > 0
    return [name for name, keep in zip(raw.classes, kept, strict=True) if keep], np.cumsum(kept) - 1


def _duplicates(split: str, scanned: dict[str, Scanned]) -> dict[str, int]:
    """Count images that repeat an earlier one of the split, and test images that are in train."""
    mine = scanned[split].keys
    found = {"within": len(mine) - len(np.unique(mine))}
    if split != "train":
        found["of_train"] = int(np.isin(mine, scanned["train"].keys).sum())
    return found


def _copies(filled: Sequence[FilledSplit], scanned: dict[str, Scanned]) -> list[Problem]:
    """Return images that repeat an earlier one (train comes first), with the original; LISTED at most."""
    keys = np.concatenate([scanned[part.name].keys for part in filled])
    order = np.argsort(keys, kind="stable")  # groups equal keys, the earliest first
    keys = keys[order]
    again = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    again = again[np.argsort(order[again])][:LISTED]
    originals = order[np.searchsorted(keys, keys[again])]
    rows = [np.flatnonzero(part.good()) for part in filled]

    def name(place: int) -> str:
        at = int(place >= len(rows[0]))  # of the two splits
        row = rows[at][[place - at * len(rows[0])]]
        return f"{filled[at].name}: {filled[at].split.reader.names(row)[0]}"

    pairs = zip(order[again].tolist(), originals.tolist(), strict=True)
    return [Problem(name(copy), f"copy of {name(original)}") for copy, original in pairs]


def _good_images(part: FilledSplit) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of the good rows, in blocks, each mapped by itself, so that its pages are released."""
    good = part.good()
    for start in range(0, len(good), part.target.block):
        block = slice(start, start + part.target.block)
        yield np.load(part.target.images, mmap_mode="r")[block][good[block]]


def _place_images(target: SplitTarget, good: NDArray[np.bool_], path: Path) -> None:
    """Move the images to `path`; if rows are left out, copy the others there in blocks."""
    if good.all():
        shutil.move(target.images, path)
        return
    images = np.load(target.images, mmap_mode="r")
    out = open_memmap(path, mode="w+", dtype=np.uint8, shape=(int(good.sum()), *target.shape[1:]))
    rows = np.flatnonzero(good)
    for start in range(0, len(rows), target.block):
        out[start : start + target.block] = images[rows[start : start + target.block]]
    out.flush()
