"""Filled splits into the stores that readers see: bad rows left out, everything counted and digested."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from diffusion.data.data_config import DataConfig
from diffusion.data.journal import SplitTarget, read_digests
from diffusion.data.problems import Problem, count_problems, write_list
from diffusion.data.readers.resize import transforms
from diffusion.data.source import RawData, Split
from diffusion.images.digests import combine_digests
from diffusion.images.store import Labels, describe_store
from diffusion.system.errors import DiffctlError

LISTED = 10_000  # copies in duplicates.csv at most


class FilledSplit(NamedTuple):
    """A split whose rows are all on disk, and those that hold zeros since they could not be read."""

    name: str
    split: Split
    target: SplitTarget
    bad: dict[int, str]

    def problems(self) -> list[Problem]:
        """The bad rows by the names of their files."""
        rows = np.array(sorted(self.bad), dtype=np.int64)
        names = self.split.reader.names(rows)
        return [Problem(name, self.bad[row]) for name, row in zip(names, rows.tolist(), strict=True)]

    def good(self) -> NDArray[np.bool_]:
        """Which rows hold an image."""
        mask = np.ones(self.target.shape[0], dtype=bool)
        mask[list(self.bad)] = False
        return mask

    def labels(self) -> Labels | None:
        """The labels of the good rows."""
        return None if self.split.labels is None else self.split.labels[self.good()]


class Scanned(NamedTuple):
    """The good rows of a split: labels as they will stand, content digest, image keys, raw files' hash."""

    labels: Labels | None
    shape: tuple[int, ...]
    digest: str
    keys: NDArray[np.uint64]
    files: str | None


def write_stores(
    out: Path, config: DataConfig, raw: RawData, filled: Sequence[FilledSplit], problems: Sequence[Problem]
) -> None:
    """Write a store a split into the folder `out`, and lists: skipped.csv, what was left out; duplicates.csv.

    A class that has lost all its images is left out too. What was filled stays as it is: a second name of the
    images is in `out`. DiffctlError when a split has none left.
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
            "counts": _count(scan.labels, len(classes)),
            "image_size": scan.shape[1],
            "channels": scan.shape[3],
            "transforms": transforms(raw.shape, scan.shape[1], scan.shape[3]),
            "sources": sources,
            "duplicates": _duplicates(part.name, scanned),
            "skipped": count_problems(problems),
        }
        describe_store(folder, scan.labels, meta, len(scan.keys), scan.digest)
    if problems:
        write_list(out / "skipped.csv", problems)
    if copies := _copies(filled, scanned):
        write_list(out / "duplicates.csv", copies)
    for part in filled:
        _place_images(part.target, part.good(), out / part.name / "images.npy")


def _scan(part: FilledSplit, new_label: Labels | None) -> Scanned:
    """Go through the digests of the good rows once; DiffctlError when there are none."""
    good, labels = part.good(), part.labels()
    if not good.any():
        raise DiffctlError(f"no image of the {part.name} split can be used")
    if labels is not None and new_label is not None:
        labels = new_label[labels]
    shape = (int(good.sum()), *part.target.shape[1:])
    keys: list[NDArray[np.uint64]] = []
    files, has_files = hashlib.sha256(), False

    def rows() -> Iterator[NDArray[np.uint8]]:
        nonlocal has_files
        start = 0
        for block in read_digests(part.target):
            kept = block[good[start : start + len(block)]]
            start += len(block)
            keys.append(np.ascontiguousarray(kept[:, :8]).view(np.uint64)[:, 0])
            has_files = has_files or bool(kept[:, 32:].any())
            files.update(np.ascontiguousarray(kept[:, 32:]).data)
            yield kept[:, :32]

    digest = combine_digests(shape, rows(), labels)
    return Scanned(labels, shape, digest, np.concatenate(keys), files.hexdigest() if has_files else None)


def _classes(raw: RawData, filled: Sequence[FilledSplit]) -> tuple[list[str], Labels | None]:
    """The classes that still have images, and the new label of each old one (None: as before)."""
    found = [labels for part in filled if (labels := part.labels()) is not None]
    if not found:
        return [], None
    kept = np.bincount(np.concatenate(found), minlength=len(raw.classes)) > 0
    return [name for name, keep in zip(raw.classes, kept, strict=True) if keep], np.cumsum(kept) - 1


def _count(labels: Labels | None, classes: int) -> list[int]:
    return [] if labels is None else np.bincount(labels, minlength=classes).tolist()


def _duplicates(split: str, scanned: dict[str, Scanned]) -> dict[str, int]:
    """Images of the split that repeat an earlier one of it, and test images that were trained on."""
    mine = scanned[split].keys
    found = {"within": len(mine) - len(np.unique(mine))}
    if split != "train":
        found["of_train"] = int(np.isin(mine, scanned["train"].keys).sum())
    return found


def _copies(filled: Sequence[FilledSplit], scanned: dict[str, Scanned]) -> list[Problem]:
    """Images that repeat an earlier one, the first split's being earlier, and which; LISTED at most."""
    keys = np.concatenate([scanned[part.name].keys for part in filled])
    order = np.argsort(keys, kind="stable")  # equal keys lie together, the earliest first
    keys = keys[order]
    again = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    again = again[np.argsort(order[again])][:LISTED]
    originals = order[np.searchsorted(keys, keys[again])]
    names = _names(filled, np.concatenate([order[again], originals]))
    pairs = zip(names[: len(again)], names[len(again) :], strict=True)
    return [Problem(copy, f"copy of {original}") for copy, original in pairs]


def _names(filled: Sequence[FilledSplit], places: NDArray[np.int64]) -> list[str]:
    """What a person calls the images at some places, counted through the good rows of all splits."""
    names = np.empty(len(places), dtype=object)
    start = 0
    for part in filled:
        rows = np.flatnonzero(part.good())
        mine = np.flatnonzero((places >= start) & (places < start + len(rows)))
        found = part.split.reader.names(rows[places[mine] - start])
        names[mine] = [f"{part.name}: {name}" for name in found]
        start += len(rows)
    return names.tolist()


def _place_images(target: SplitTarget, good: NDArray[np.bool_], path: Path) -> None:
    """Give the images their place too; where rows are left out, copy the others there, block by block.

    They stay where they are as well, so that whoever is killed here need not read them again.
    """
    if good.all():
        try:
            os.link(target.images, path)
        except OSError:  # on another disk, or one without links
            shutil.copyfile(target.images, path)
        return
    images = np.load(target.images, mmap_mode="r")
    out = open_memmap(path, mode="w+", dtype=np.uint8, shape=(int(good.sum()), *target.shape[1:]))
    rows = np.flatnonzero(good)
    for start in range(0, len(rows), target.block):
        out[start : start + target.block] = images[rows[start : start + target.block]]
    out.flush()
