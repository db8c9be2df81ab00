"""Names of classes as raw data have them: text that a table, a page and a model's file can hold."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from diffusion.system.errors import DiffctlError, printable

MAX_NAME_LENGTH = 255  # characters; a folder's name has no more


def class_names(names: Sequence[str | bytes], origin: Path) -> tuple[str, ...]:
    """The names as text; DiffctlError unless each is printable, bytes being UTF-8, and there once."""
    if not isinstance(names, list | tuple):
        raise DiffctlError(f"{printable(origin)} has no list of classes: it is not a file of this set")
    found = tuple(_text(name) for name in names)
    for name in found:
        if not name.isprintable() or not 0 < len(name) <= MAX_NAME_LENGTH:
            raise DiffctlError(
                f"{printable(origin)} has a class named {printable(name[:40])!r}: give it a name of at most "
                f"{MAX_NAME_LENGTH} printable characters"
            )
    if twice := [name for name, count in Counter(found).items() if count > 1]:
        raise DiffctlError(f"{printable(origin)} has two classes named {twice[0]}: give each its own name")
    return found


def _text(name: object) -> str:
    if isinstance(name, bytes):
        return name.decode("utf-8", "surrogateescape")
    return name if isinstance(name, str) else ""
