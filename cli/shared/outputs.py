"""Files and folders that a command is told to write: as the person named them, and tried before the work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer


def file_option(*flags: str, help: str) -> Any:
    """An option that names a file to write."""
    return typer.Option(*flags, parser=_file, metavar="FILE", help=help)


def folder_option(*flags: str, help: str) -> Any:
    """An option that names a folder to write to."""
    return typer.Option(*flags, parser=_folder, metavar="FOLDER", help=help)


def folder_argument(help: str) -> Any:
    """An argument that names a folder to make."""
    return typer.Argument(parser=_folder, metavar="FOLDER", help=help)


def _file(given: str | Path) -> Path:
    """UsageError for what names no file."""
    from diffusion.system.errors import UsageError, printable

    text = str(given)  # a default is a path already
    if text == "-":
        raise UsageError("- names no file: standard output is /dev/stdout, a file of that name ./-")
    if not text or text.endswith("/"):
        raise UsageError(f"{printable(text)!r} names no file: give one")
    return Path(text)


def _folder(given: str | Path) -> Path:
    from diffusion.system.errors import UsageError

    text = str(given)  # a default is a path already
    if not text:
        raise UsageError("'' names no folder: give one")
    return Path(text)


def writer_of(out: Path, writers: dict[str, Callable[..., None]]) -> Callable[..., None]:
    """What writes a file of this name; UsageError when nothing does or can, before any work."""
    from diffusion.system.errors import UsageError, printable
    from diffusion.system.output_paths import check_output

    if out.suffix not in writers:
        raise UsageError(f"--out {printable(out)}: give a file that ends in {' or '.join(writers)}")
    check_output(out, "--out")
    return writers[out.suffix]
