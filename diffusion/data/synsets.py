"""Names of ImageNet's classes."""

from collections import Counter
from collections.abc import Sequence

CLASSES = 1000


def unique_names(classes: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Names of (synset, name) pairs; the few that occur twice (crane, the bird and the machine) get their synset."""
    seen = Counter(name for _, name in classes)
    return tuple(name if seen[name] == 1 else f"{name} ({synset})" for synset, name in classes)
