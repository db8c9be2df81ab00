"""Filled splits into the stores that readers see: bad rows left out, everything counted and digested."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from diffusion.data.fill import Target, read_digests
from diffusion.data.pixels import transforms
from diffusion.data.problems import Problem, counts, write_list
from diffusion.data.source import RawData, Split
from diffusion.data.store import Labels, combine_digests, describe_store
from diffusion.errors import DiffctlError


class Filled(NamedTuple):
    """A split whose rows are all on disk, and those that hold zeros since they could not be read."""

    name: str
    split: Split
    target: Target
    bad: dict[int, str]

    def problems(self) -> list[Problem]:
        """The bad rows by the names of their files."""
        return [Problem(self.split.reader.where(row), why) for row, why in sorted(self.bad.items())]

    def good(self) -> NDArray[np.bool_]:
        """Which rows hold an image."""
        mask = np.ones(self.target.shape[0], dtype=bool)
        mask[list(self.bad)] = False
        return mask

    def labels(self) -> Labels | None:
        """The labels of the good rows."""
        return None if self.split.labels is None else self.split.labels[self.good()]


def finish(out: Path, name: str, raw: RawData, filled: Sequence[Filled], problems: Sequence[Problem]) -> None:
    """Write a store a split into the folder `out`, and skipped.csv where problems were left out.

    A class that has lost all its images is left out too. DiffctlError when a split has none left.
    """
    classes, new_label = _classes(raw, filled) if problems else (list(raw.classes), None)
    seen: dict[str, NDArray[np.uint64]] = {}
    for part in filled:
        good = part.good()
        if not good.any():
            raise DiffctlError(f"no image of the {part.name} split can be used")
        labels = part.labels()
        labels = labels if labels is None or new_label is None else new_label[labels]
        digests = read_digests(part.target)
        rows = np.asarray(digests[good, :32])
        seen[part.name] = np.ascontiguousarray(rows[:, :8]).view(np.uint64)[:, 0]
        folder = out / part.name
        folder.mkdir()
        shape = (len(rows), *part.target.shape[1:])
        meta = _meta(name, part, raw, classes, labels, shape) | {
            "sources": dict(raw.sources) | _file_sources(filled),
            "duplicates": _duplicates(part.name, seen),
            "skipped": counts(problems),
        }
        describe_store(folder, labels, meta, len(rows), combine_digests(shape, [rows], labels))
        _place_images(part.target, good, folder / "images.npy")
    if problems:
        write_list(out / "skipped.csv", problems)


def _classes(raw: RawData, filled: Sequence[Filled]) -> tuple[list[str], Labels | None]:
    """The classes that still have images, and the new label of each old one (None: as before)."""
    found = [labels for part in filled if (labels := part.labels()) is not None]
    if not found:
        return [], None
    kept = np.bincount(np.concatenate(found), minlength=len(raw.classes)) > 0
    return [name for name, keep in zip(raw.classes, kept, strict=True) if keep], np.cumsum(kept) - 1


def _meta(
    name: str,
    part: Filled,
    raw: RawData,
    classes: list[str],
    labels: Labels | None,
    shape: tuple[int, ...],
) -> dict[str, Any]:
    return {
        "name": name,
        "split": part.name,
        "classes": classes,
        "counts": [] if labels is None else np.bincount(labels, minlength=len(classes)).tolist(),
        "image_size": shape[1],
        "channels": shape[3],
        "transforms": transforms(raw.shape, shape[1], shape[3]),
    }


def _file_sources(filled: Sequence[Filled]) -> dict[str, str]:
    """One checksum over the files of each split, where those are too many to name."""
    sources = {}
    for part in filled:
        files = read_digests(part.target)[part.good(), 32:]
        if files.any():
            sources[f"{part.name}: {len(files):,} files"] = hashlib.sha256(files.tobytes()).hexdigest()
    return sources


def _duplicates(name: str, seen: dict[str, NDArray[np.uint64]]) -> dict[str, int]:
    """Images of the split that repeat an earlier one of it, and that stand in an earlier split too."""
    mine = seen[name]
    found = {"within": len(mine) - len(np.unique(mine))}
    others = {f"of_{other}": int(np.isin(mine, rows).sum()) for other, rows in seen.items() if other != name}
    return found | others


def _place_images(target: Target, good: NDArray[np.bool_], path: Path) -> None:
    """Move the images to their place; where rows are left out, copy the others, block by block."""
    if good.all():
        shutil.move(target.images, path)
        return
    images = np.load(target.images, mmap_mode="r")
    out = open_memmap(path, mode="w+", dtype=np.uint8, shape=(int(good.sum()), *target.shape[1:]))
    rows = np.flatnonzero(good)
    for start in range(0, len(rows), target.block):
        out[start : start + target.block] = images[rows[start : start + target.block]]
    out.flush()
