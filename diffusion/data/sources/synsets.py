"""Names of ImageNet's classes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from diffusion.data.class_names import class_names

CLASSES = 1000


def unique_names(classes: Sequence[tuple[str, str]], origin: Path) -> tuple[str, ...]:
    """The names of (synset, name) pairs; one that stands twice (crane: bird, machine) gets its synset too.

    DiffctlError where the list that is their origin has names that are none.
    """
    seen = Counter(name for _, name in classes)
    names = [name if seen[name] == 1 else f"{name} ({synset})" for synset, name in classes]
    return class_names(names, origin)
