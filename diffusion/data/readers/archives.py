"""Named members out of tar and zip archives. No path of an archive is ever trusted."""

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
MAX_AT_ONCE = 4 << 20  # bytes of it that are asked for at a time; a header's length may be a lie
MAX_MEMBERS = 10_000
DAMAGE = (
    tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError, RecursionError, IndexError, KeyError,
)  # fmt: skip


def unpack_tar(archive: Path, members: Collection[str], folder: Path) -> Path:
    """Unpack the named members, side by side, into `folder`, whole or not at all; returns it.

    They must be plain files, of which nothing but the bytes is taken. DiffctlError when one is missing, is
    there twice or is something else (a link, a device), or when the archive is damaged or a bomb.
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
                for name, info in found.items():  # in the archive's order: going back would unpack it anew
                    _take(tar, archive, info, made / PurePosixPath(name).name)
    except (*DAMAGE, OSError) as error:
        raise _failure(archive, folder, error) from None
    return folder


class _Unpacked(gzip.GzipFile):
    """A gzipped tar's content, refused where it becomes larger than any that is read here."""

    def read(self, size: int | None = -1) -> bytes:
        """As any file's; ReadError where too much is asked for."""
        if size is None or not 0 <= size <= MAX_AT_ONCE or self.tell() + size > MAX_UNPACKED:
            raise tarfile.ReadError("it says that it holds more than such archives do")
        return super().read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As any file's."""
        if not 0 <= offset <= MAX_UNPACKED:
            raise tarfile.ReadError("it says that it holds more than such archives do")
        return super().seek(offset, whence)


def _members(tar: tarfile.TarFile, names: Collection[str]) -> dict[str, tarfile.TarInfo]:
    """Those of the named members that the archive has; ReadError for what no archive looks like."""
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
    """Unpack those of the named files that the zip holds, in whatever folders, flat into `folder`.

    Files that are there already stay. DiffctlError for a damaged archive, a bomb, two files of one name, or a
    full disk.
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
    """A member's content as a file; DiffctlError when the disk refuses it."""
    try:
        write_atomic(path, partial(shutil.copyfileobj, source))
    except OSError as error:
        raise DiffctlError(f"cannot write {path} ({error.strerror}): make room or give access") from None


def zip_names(archive: Path) -> set[str]:
    """The names of the files that the zip holds, without folders; DiffctlError for a damaged archive."""
    with explained(archive), open_zip(archive) as opened:
        return {_flat(info.filename) for info in opened.infolist() if not info.is_dir()}


def _flat(name: str) -> str:
    return PurePosixPath(name).name


def _failure(archive: Path, folder: Path, error: Exception) -> DiffctlError:
    """A disk's error has a number; what a decompressor raises for damaged content has none."""
    if isinstance(error, OSError) and error.errno is not None:
        return DiffctlError(
            f"cannot unpack {archive} into {folder} ({error.strerror}): make room or give access"
        )
    return DiffctlError(f"{archive} is damaged ({printable(error)[:200]}): delete it and get it again")
