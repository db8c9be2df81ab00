"""Extraction of named members from tar and zip archives. Paths in an archive are never trusted."""

import gzip
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Collection
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from diffusion.data.zip_files import explained, open_member, open_zip
from diffusion.system.errors import DiffctlError, printable
from diffusion.system.files import atomic_folder, write_atomic
from diffusion.system.regular_files import open_regular, read_error

MAX_UNPACKED = 1 << 30  # bytes of a tar; CIFAR's take 190 MB
MAX_READ = 4 << 20  # bytes per read; a header's length may be false
MAX_MEMBERS = 10_000
DAMAGE = (
    tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError, RecursionError, IndexError, KeyError,
)  # fmt: skip


def unpack_tar(archive: Path, members: Collection[str], folder: Path) -> Path:
    """Extract the named members into `folder`, flat, completely or not at all; return the folder.

    Only the bytes of regular files are extracted. DiffctlError if a member is missing, a duplicate or no
    regular file, or if the archive is damaged or a bomb.
    """
    if all((folder / PurePosixPath(name).name).is_file() for name in members):
        return folder
    try:
        packed = open_regular(archive)
    except OSError as error:
        raise read_error(archive, error) from None
    try:
        with packed, _Unpacked(fileobj=packed) as content, tarfile.open(fileobj=content, mode="r:") as tar:
            found = _members(tar, members)
            if missing := [name for name in members if name not in found]:
                raise DiffctlError(f"{archive} has no {missing[0]}: it is not the published archive")
            with atomic_folder(folder) as made:
                for (
                    name,
                    info,
                ) in found.items():  # in order: seeking back decompresses it again
                    _take(tar, archive, info, made / PurePosixPath(name).name)
    except (*DAMAGE, OSError) as error:
        raise _failure(archive, folder, error) from None
    return folder


class _Unpacked(gzip.GzipFile):
    """Content of a gzipped tar, refused if it is larger than any supported archive."""

    def read(self, size: int | None = -1) -> bytes:
        """Read as any file; ReadError for too much."""
        if size is None or not 0 <= size <= MAX_READ or self.tell() + size > MAX_UNPACKED:
            raise tarfile.ReadError("its contents are larger than a supported archive's")
        return super().read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek as any file; ReadError beyond the limit."""
        if not 0 <= offset <= MAX_UNPACKED:
            raise tarfile.ReadError("its contents are larger than a supported archive's")
        return super().seek(offset, whence)


def _members(tar: tarfile.TarFile, names: Collection[str]) -> dict[str, tarfile.TarInfo]:
    """Return the named members that the archive has; ReadError if its structure is invalid."""
    found: dict[str, tarfile.TarInfo] = {}
    offset = -1
    for number, info in enumerate(tar):
        if info.offset <= offset or info.size < 0 or number >= MAX_MEMBERS:
            raise tarfile.ReadError("its members do not follow each other")
        offset = info.offset
        if info.name in found:
            raise tarfile.ReadError(f"it has {info.name} twice")
        if info.name in names:
            found[info.name] = info
    return found


def _take(tar: tarfile.TarFile, archive: Path, info: tarfile.TarInfo, path: Path) -> None:
    content = tar.extractfile(info) if info.isreg() and not info.issparse() else None
    if content is None:
        raise DiffctlError(f"{archive}: {info.name} is not a plain file: it is not the published archive")
    with content, open(path, "wb") as file:
        shutil.copyfileobj(content, file)
    if path.stat().st_size != info.size:
        raise tarfile.ReadError(f"{info.name} ends too early")


def unpack_zip(archive: Path, names: Collection[str], folder: Path) -> list[Path]:
    """Extract those of the named files that the zip has, from any folder, flat into `folder`.

    Existing files stay. DiffctlError for a damaged archive, a bomb, duplicates, or a full disk.
    """
    found = []
    with explained(archive), open_zip(archive) as opened:
        wanted = {info: _flat(info.filename) for info in opened.infolist() if not info.is_dir()}
        counted = Counter(name for name in wanted.values() if name in names)
        if twice := [name for name, count in counted.items() if count > 1]:
            raise DiffctlError(f"{printable(archive)} has {twice[0]} twice: get it again")
        for info, name in wanted.items():
            if name not in names:
                continue
            if not (folder / name).is_file():
                with open_member(opened, info) as source:
                    _write(folder / name, source)
            found.append(folder / name)
    return found


def _write(path: Path, source: IO[bytes]) -> None:
    """Write a member's content to a file; DiffctlError if the disk refuses it."""
    try:
        write_atomic(path, partial(shutil.copyfileobj, source))
    except OSError as error:
        raise DiffctlError(f"cannot write {path} ({error.strerror}): make room or give access") from None


def zip_names(archive: Path) -> set[str]:
    """Return the names of the files in the zip, without folders; DiffctlError if it is damaged."""
    with explained(archive), open_zip(archive) as opened:
        return {_flat(info.filename) for info in opened.infolist() if not info.is_dir()}


def _flat(name: str) -> str:
    return PurePosixPath(name).name


def _failure(archive: Path, folder: Path, error: Exception) -> DiffctlError:
    """Return the error to raise. An OSError with a number is the disk's; others are the archive's."""
    if isinstance(error, OSError) and error.errno is not None:
        return DiffctlError(
            f"cannot unpack {archive} into {folder} ({error.strerror}): make room or give access"
        )
    return DiffctlError(f"{archive} is damaged ({printable(error)[:200]}): delete it and get it again")
