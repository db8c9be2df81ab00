"""Tensors by name that come into memory one at a time, each when it is asked for."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor


class LazyTensors(Mapping[str, Tensor]):
    """Names whose order is known; to look for one, or to count them, brings no tensor."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)

    @abstractmethod
    def __getitem__(self, name: str) -> Tensor:
        """The tensor, brought anew."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


class Some(LazyTensors):
    """Some of the `source`'s tensors, by other names: `names` says for each what the source calls it."""

    def __init__(self, source: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        super().__init__(names)
        self._source, self._called = source, names

    def __getitem__(self, name: str) -> Tensor:
        return self._source[self._called[name]]


def without(tensors: Mapping[str, Tensor], prefix: str) -> Some:
    """The tensors but for those whose names begin so."""
    return Some(tensors, {name: name for name in tensors if not name.startswith(prefix)})


def parts_of(tensors: Mapping[str, Tensor]) -> dict[str, Some]:
    """The tensors of each part, by the `part.name` that they are called."""
    named: dict[str, dict[str, str]] = {}
    for name in tensors:
        part, _, rest = name.partition(".")
        named.setdefault(part, {})[rest] = name
    return {part: Some(tensors, names) for part, names in named.items()}
