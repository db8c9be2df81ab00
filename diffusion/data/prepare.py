"""Body of the data stage: raw data to stores. Equal raw files and config give equal bytes.

Unreadable rows are left out of the stores; everything is counted and hashed.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray

from diffusion.code_digest import code_digest, code_of
from diffusion.data.data_config import GIVEN, SOURCES, DataConfig, build_source
from diffusion.data.journal import SplitTarget, fill_split
from diffusion.data.readers.image_files import transforms
from diffusion.data.source import ImageProblem, RawData, Reader, count_problems, summarize, write_list
from diffusion.downloads.fetch import OnProgress
from diffusion.images.image_size import height_and_width, written_size
from diffusion.images.store import Labels, combine_digests, describe_store, image_sample, npy_header
from diffusion.layout import PREPARE_RUNS
from diffusion.system.errors import DiffctlError
from diffusion.system.files import atomic_folder
from diffusion.system.locks import LockBusy, file_lock
from diffusion.system.section import fingerprint
from diffusion.system.signals import interrupt_on_signal

Progress = Callable[[int, int], None]  # images done, images in all
BUSY = "another process is preparing this data set already: wait for it or stop it"
LISTED = 10_000  # maximum copies in duplicates.csv


class FilledSplit(NamedTuple):
    """A split with all rows on disk.

    `good` is a mask of the rows with an image, and `problems` names the others, which hold zeros. `labels`
    and `digests` (n, 64), as in SplitTarget, are of the good rows.
    """

    reader: Reader
    target: SplitTarget
    good: NDArray[np.bool_]
    problems: list[ImageProblem]
    labels: Labels | None
    digests: NDArray[np.uint8]

    def keys(self) -> NDArray[np.uint64]:
        """Return a number per good row that is equal for equal images: the beginning of its digest."""
        return self.digests[:, :8].copy().view(np.uint64)[:, 0]

    def images(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the good rows in blocks, each mapped by itself, so that its pages are released."""
        for start in range(0, len(self.good), self.target.block):
            block = slice(start, start + self.target.block)
            yield np.load(self.target.images, mmap_mode="r")[block][self.good[block]]


def prepare(
    config: DataConfig,
    out: Path,
    progress: Progress | None = None,
    downloading: OnProgress | None = None,
    work: Path = PREPARE_RUNS,
) -> None:
    """Write the stores out/train and out/test, completely or not at all.

    Images are read on all cores into a folder of `work`. Its name depends on the input, so that a killed
    preparation resumes. Unfinished folders of other settings are removed when this one is complete. The
    folder's lock is next to it and removed last. DiffctlError names what is missing, and what cannot be used
    unless `on_bad` is skip: then `out` has the list in skipped.csv. A signal interrupts downloads and
    unpacking at once.
    """
    with interrupt_on_signal():  # downloads and unpacked files are complete, absent or resumed
        raw = build_source(config).open(downloading)
    listing = work / "problems.csv"
    if config.on_bad == "stop":
        _refuse(raw.problems, listing)
    folder = work / _name(config, raw)
    with file_lock(_lock_of(folder), timeout=0, busy=BUSY):
        folder.mkdir(exist_ok=True)
        filled = _fill_all(folder, config, raw, progress)
        problems = sorted(
            [*raw.problems, *(problem for split in filled.values() for problem in split.problems)]
        )
        if config.on_bad == "stop":
            _refuse(problems, listing)
        with atomic_folder(out) as made:
            _write_stores(made, config, raw, filled, problems)
        _drop(folder)
    listing.unlink(missing_ok=True)
    for other in (lock.with_suffix("") for lock in work.glob("*.lock")):
        with suppress(LockBusy), file_lock(_lock_of(other), timeout=0):
            _drop(other)


def _refuse(problems: Sequence[ImageProblem], listing: Path) -> None:
    """Raise a DiffctlError with the summary if there are problems; write the full list to `listing`."""
    if problems:
        write_list(listing, problems)
        raise DiffctlError(
            f"{len(problems):,} of the raw files cannot be used: {summarize(problems)}; repair or remove "
            f"them, or set data.on_bad: skip to leave them out (all of them are listed in {listing})"
        )


def shape_of(config: DataConfig, native: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """Return (H, W, C) of the prepared images: as configured, else the native one."""
    if config.image_size is not None:
        size = height_and_width(config.image_size)
    else:
        assert native is not None, "the config refuses photographs without a size"
        size = native[:2]
    return *size, config.channels or (native[2] if native else 3)


def _name(config: DataConfig, raw: RawData) -> str:
    """Return 16 hex digits of all that decides the prepared pixels, code and decoder included."""
    chosen = config.model_dump(mode="json", exclude={"on_bad", "flip"})
    rows = [len(split.reader) for split in raw.splits.values()]
    of = [raw.identity, dict(raw.sources), rows]
    code = code_of(["diffusion.data.prepare"], [(SOURCES, config.name)])
    return fingerprint({"code": code_digest(code), "pillow": PIL.__version__, **chosen, "of": of})


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _drop(folder: Path) -> None:
    """Remove the folder and its lock, which this process holds; a waiting process creates a new lock."""
    if folder.exists():
        shutil.rmtree(folder)
    _lock_of(folder).unlink()


def _fill_all(
    folder: Path, config: DataConfig, raw: RawData, progress: Progress | None
) -> dict[str, FilledSplit]:
    """Read all rows of both splits into subfolders of `folder`."""
    shape, so_far = shape_of(config, raw.shape), 0
    total = sum(len(split.reader) for split in raw.splits.values())

    def done(images: int) -> None:
        nonlocal so_far
        so_far += images
        if progress is not None:
            progress(so_far, total)

    filled = {}
    for name, (reader, labels) in raw.splits.items():
        target = SplitTarget(folder / name, (len(reader), *shape))
        bad = fill_split(reader, target, done)
        rows = np.array([*bad], dtype=np.int64)
        problems = [
            ImageProblem(file, why) for file, why in zip(reader.names(rows), bad.values(), strict=True)
        ]
        good = np.ones(len(reader), dtype=bool)
        good[rows] = False
        digests = np.memmap(target.digests, np.uint8, "r").reshape(-1, 64)
        digests = digests[good] if problems else digests  # a copy of 64 bytes an image
        kept = None if labels is None else labels[good]
        filled[name] = FilledSplit(reader, target, good, problems, kept, digests)
    return filled


def _write_stores(
    out: Path, config: DataConfig, raw: RawData, filled: dict[str, FilledSplit], problems: list[ImageProblem]
) -> None:
    """Write a store per split into `out`, and skipped.csv and duplicates.csv if there are any.

    A class without images is left out. DiffctlError if a split has no image left.
    """
    classes, new_label = _classes(raw, filled)
    sources = dict(raw.sources)
    for name, part in filled.items():
        if part.digests[:, 32:].any():
            digest = hashlib.sha256(part.digests[:, 32:].tobytes()).hexdigest()
            sources[f"{name}: {len(part.digests):,} files"] = digest
    for name, part in filled.items():
        if not len(part.digests):
            raise DiffctlError(f"no image of the {name} split can be used")
        labels = part.labels if new_label is None or part.labels is None else new_label[part.labels]
        shape = (len(part.digests), *part.target.shape[1:])
        meta = {
            "name": config.name,
            "split": name,
            "options": config.own_options(),
            "given": config.model_dump(mode="json", include=GIVEN),
            "classes": classes,
            "counts": [] if labels is None else np.bincount(labels, None, len(classes)).tolist(),
            "image_size": written_size(shape[1:3]),
            "channels": shape[3],
            "transforms": transforms(raw.shape, shape[1:3], shape[3]),
            "sources": sources,
            "duplicates": _duplicates(name, filled),
            "skipped": count_problems(problems),
        }
        if name == "train":
            meta["pixel_std"] = pixel_std(part.images())
            meta["sample"] = image_sample(one.digests for one in filled.values())
        (out / name).mkdir()
        digest = combine_digests(shape, [part.digests[:, :32]], labels)
        describe_store(out / name, labels, meta, shape[0], digest)
    if problems:
        write_list(out / "skipped.csv", problems)
    if copies := _copies(filled):
        write_list(out / "duplicates.csv", copies)
    for name, part in filled.items():
        _place_images(part, out / name / "images.npy")


def pixel_std(images: Iterable[NDArray[np.uint8]]) -> float:
    """Return the pixels' standard deviation in [−1, 1], of four digits: EDM's σ_data (2206.00364, F.6)."""
    counts = sum(np.bincount(np.asarray(some).reshape(-1), minlength=256) for some in images)
    values = np.arange(256) / 127.5 - 1
    mean = np.average(values, weights=counts)
    return float(f"{math.sqrt(np.average((values - mean) ** 2, weights=counts)):.4g}")


def _classes(raw: RawData, filled: Mapping[str, FilledSplit]) -> tuple[list[str], Labels | None]:
    """Return the classes that have images, and the new label of each old one; None without labels."""
    found = [part.labels for part in filled.values() if part.labels is not None]
    if not found:
        return [], None
    kept = np.bincount(np.concatenate(found), minlength=len(raw.classes)) > 0
    return [name for name, keep in zip(raw.classes, kept, strict=True) if keep], np.cumsum(kept) - 1


def _duplicates(split: str, filled: Mapping[str, FilledSplit]) -> dict[str, int]:
    """Count images that repeat an earlier one of the split, and test images that are in train."""
    keys = filled[split].keys()
    found = {"within": len(keys) - len(np.unique(keys))}
    if split != "train":
        found["of_train"] = int(np.isin(keys, filled["train"].keys()).sum())
    return found


def _copies(filled: Mapping[str, FilledSplit]) -> list[ImageProblem]:
    """Return images that repeat an earlier one (train comes first), with the original; LISTED at most."""
    keys = np.concatenate([part.keys() for part in filled.values()])
    order = np.argsort(keys, kind="stable")  # groups equal keys, the earliest first
    keys = keys[order]
    again = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    again = again[np.argsort(order[again])][:LISTED]
    originals = order[np.searchsorted(keys, keys[again])]
    rows = np.concatenate([np.flatnonzero(part.good) for part in filled.values()])

    def name(place: int) -> str:
        split = "train" if place < len(filled["train"].digests) else "test"
        return f"{split}: {filled[split].reader.names(rows[[place]])[0]}"

    pairs = zip(order[again].tolist(), originals.tolist(), strict=True)
    return [ImageProblem(name(copy), f"copy of {name(original)}") for copy, original in pairs]


def _place_images(part: FilledSplit, path: Path) -> None:
    """Link the images to `path`; if rows are left out, copy the others there in blocks."""
    if part.good.all():
        try:
            os.link(part.target.images, path)  # until the whole is in place, nothing is removed
        except OSError:  # no links, or another file system
            shutil.move(part.target.images, path)
        return
    with open(path, "wb") as file:
        file.write(npy_header((len(part.digests), *part.target.shape[1:])))
        for block in part.images():
            file.write(np.ascontiguousarray(block).data)
