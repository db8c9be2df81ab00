"""Class names of raw data, checked so that tables, pages and model files can hold them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from diffusion.system.errors import DiffctlError, printable

MAX_NAME_LENGTH = 255  # characters, as of a folder's name
IMAGENET_CLASSES = 1000


def class_names(names: Sequence[str | bytes], origin: Path) -> tuple[str, ...]:
    """Return the names as text; DiffctlError unless each is printable, valid UTF-8 and unique."""
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


def unique_names(classes: Sequence[tuple[str, str]], origin: Path) -> tuple[str, ...]:
    """Return the names of (synset, name) pairs; a duplicate (crane: bird, machine) gets its synset added.

    DiffctlError as `class_names`, for the file `origin` that lists them.
    """
    seen = Counter(name for _, name in classes)
    names = [name if seen[name] == 1 else f"{name} ({synset})" for synset, name in classes]
    return class_names(names, origin)


def _text(name: object) -> str:
    if isinstance(name, bytes):
        return name.decode("utf-8", "surrogateescape")
    return name if isinstance(name, str) else ""
