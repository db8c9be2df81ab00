"""Named members out of tar and zip archives. No path of an archive is ever trusted."""

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Collection
from functools import partial
from pathlib import Path, PurePosixPath

from diffusion.system.errors import DiffctlError
from diffusion.system.files import atomic_folder, write_atomic


def unpack_tar(archive: Path, members: Collection[str], folder: Path) -> Path:
    """Unpack the named members, side by side, into `folder`, whole or not at all; returns it.

    They must be plain files that pass tarfile's data filter. DiffctlError when one is missing or something
    else (a link, a device), or when the archive is damaged.
    """
    wanted = {PurePosixPath(name).name: name for name in members}
    if all((folder / name).is_file() for name in wanted):
        return folder
    _need_filter()
    try:
        with tarfile.open(archive, "r:*") as tar, atomic_folder(folder) as made:
            for name, member in wanted.items():
                _take(tar, archive, member, made / name)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise _failure(archive, folder, error) from None
    return folder


def _take(tar: tarfile.TarFile, archive: Path, member: str, path: Path) -> None:
    try:
        info = tar.getmember(member)
    except KeyError:
        raise DiffctlError(f"{archive} has no {member}: it is not the published archive") from None
    if not info.isreg():
        raise DiffctlError(f"{archive}: {member} is not a plain file: it is not the published archive")
    tar.extract(info.replace(name=path.name, deep=False), path.parent, filter="data")


def _need_filter() -> None:
    if not hasattr(tarfile, "data_filter"):
        raise DiffctlError("unpacking archives safely needs Python 3.11.4 or newer: update Python")


def unpack_zip(archive: Path, names: Collection[str], folder: Path) -> list[Path]:
    """Unpack those of the named files that the zip holds, in whatever folders, flat into `folder`.

    Files that are there already stay. DiffctlError for a damaged archive or a full disk.
    """
    found = []
    try:
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                name = PurePosixPath(info.filename).name
                if name not in names or info.is_dir():
                    continue
                if not (folder / name).is_file():
                    with opened.open(info) as source:
                        write_atomic(folder / name, partial(shutil.copyfileobj, source))
                found.append(folder / name)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise _failure(archive, folder, error) from None
    return found


def zip_names(archive: Path) -> set[str]:
    """The names of the files that the zip holds, without folders; DiffctlError for a damaged archive."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return {PurePosixPath(info.filename).name for info in opened.infolist() if not info.is_dir()}
    except (zipfile.BadZipFile, OSError) as error:
        raise _failure(archive, archive.parent, error) from None


def _failure(archive: Path, folder: Path, error: Exception) -> DiffctlError:
    """A disk's error has a number; what a decompressor raises for damaged content has none."""
    if isinstance(error, OSError) and error.errno is not None:
        return DiffctlError(
            f"cannot unpack {archive} into {folder} ({error.strerror}): make room or give access"
        )
    return DiffctlError(f"{archive} is damaged ({error}): delete it and get it again")
