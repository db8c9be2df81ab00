"""Names of ImageNet's classes."""

from collections import Counter
from collections.abc import Sequence

CLASSES = 1000


def unique_names(classes: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The names of (synset, name) pairs; one that stands twice (crane: bird, machine) gets its synset too."""
    seen = Counter(name for _, name in classes)
    return tuple(name if seen[name] == 1 else f"{name} ({synset})" for synset, name in classes)
