"""Body of the data stage: raw data to stores. Equal raw files and config give equal bytes."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from diffusion.code_digest import code_digest, module_digests
from diffusion.data.data_config import SOURCES, DataConfig, build_source
from diffusion.data.journal import SplitTarget, fill_split
from diffusion.data.source import Problem, RawData, summarize, write_list
from diffusion.data.split_stores import FilledSplit, write_stores
from diffusion.downloads.fetch import OnProgress
from diffusion.layout import PREPARE_RUNS
from diffusion.system.errors import DiffctlError
from diffusion.system.files import atomic_folder
from diffusion.system.locks import LockBusy, file_lock
from diffusion.system.section import fingerprint

Progress = Callable[[int, int], None]  # images done, images in all
BUSY = "another process is preparing this data set already: wait for it or stop it"


def prepare(
    config: DataConfig,
    out: Path,
    progress: Progress | None = None,
    downloading: OnProgress | None = None,
    work: Path = PREPARE_RUNS,
) -> None:
    """Write the stores out/train and out/test, completely or not at all.

    Images are read on all cores into a folder of `work` whose name depends on the input, so that a killed
    preparation resumes. Unfinished folders of other settings are removed when this one is complete. The
    folder's lock is next to it and removed last. DiffctlError names what is missing, and what cannot be used
    unless `on_bad` is skip: then `out` has the list in skipped.csv.
    """
    raw = build_source(config).open(downloading)
    listing = work / "problems.csv"
    if config.on_bad == "stop":
        _refuse(raw.problems, listing)
    folder = work / _name(config, raw)
    with file_lock(_lock_of(folder), timeout=0, busy=BUSY):
        folder.mkdir(exist_ok=True)
        filled = _fill_all(folder, config, raw, progress)
        problems = sorted([*raw.problems, *(problem for split in filled for problem in split.problems())])
        if config.on_bad == "stop":
            _refuse(problems, listing)
        with atomic_folder(out) as made:
            write_stores(made, config, raw, filled, problems)
        _drop(folder)
    listing.unlink(missing_ok=True)
    _drop_unfinished(work)


def _refuse(problems: Sequence[Problem], listing: Path) -> None:
    """Raise a DiffctlError with the summary if there are problems; write the full list to `listing`."""
    if problems:
        write_list(listing, problems)
        raise DiffctlError(
            f"{len(problems):,} of the raw files cannot be used: {summarize(problems)}; repair or remove "
            f"them, or set data.on_bad: skip to leave them out (all of them are listed in {listing})"
        )


def shape_of(config: DataConfig, native: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """Return (H, W, C) of the prepared images: as configured, else the native one."""
    if native is None:
        assert config.image_size is not None, "the config refuses photographs without a size"
        return config.image_size, config.image_size, config.channels or 3
    size = config.image_size or native[0]
    return size, size, config.channels or native[2]


def _name(config: DataConfig, raw: RawData) -> str:
    """Return 16 hex digits of all that decides the prepared pixels, code included."""
    chosen = config.model_dump(mode="json", exclude={"on_bad", "flip"})
    rows = [len(split.reader) for split in raw.splits.values()]
    of = [raw.identity, dict(raw.sources), rows]
    code = module_digests("diffusion.data.prepare", SOURCES[config.name].module)
    return fingerprint({"code": code_digest(code), **chosen, "of": of})


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _drop(folder: Path) -> None:
    """Remove the folder and its lock, which this process holds; a waiting process creates a new lock."""
    if folder.exists():
        shutil.rmtree(folder)
    _lock_of(folder).unlink()


def _drop_unfinished(work: Path) -> None:
    """Remove unfinished preparations of other data or settings, unless they are running."""
    for folder in (lock.with_suffix("") for lock in work.glob("*.lock")):
        with suppress(LockBusy), file_lock(_lock_of(folder), timeout=0):
            _drop(folder)


def _fill_all(folder: Path, config: DataConfig, raw: RawData, progress: Progress | None) -> list[FilledSplit]:
    """Read all rows of both splits into subfolders of `folder`."""
    shape, so_far = shape_of(config, raw.shape), 0
    total = sum(len(split.reader) for split in raw.splits.values())

    def done(images: int) -> None:
        nonlocal so_far
        so_far += images
        if progress is not None:
            progress(so_far, total)

    filled = []
    for name, split in raw.splits.items():
        target = SplitTarget(folder / name, (len(split.reader), *shape))
        filled.append(FilledSplit(name, split, target, fill_split(split.reader, target, done)))
    return filled
