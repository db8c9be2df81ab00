"""Tensors by name that come into memory one at a time, each when it is asked for."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping

from torch import Tensor


class LazyTensors(Mapping[str, Tensor]):
    """Names whose order is known; to look for one, or to count them, brings no tensor.

    `meta_tensors` says by the same names what the tensors are like: tensors without numbers.
    """

    def __init__(self, meta_tensors: Mapping[str, Tensor]) -> None:
        self.outlines = meta_tensors

    @abstractmethod
    def __getitem__(self, name: str) -> Tensor:
        """The tensor, brought anew."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.outlines)

    def __len__(self) -> int:
        return len(self.outlines)

    def __contains__(self, name: object) -> bool:
        return name in self.outlines


class LazySubset(LazyTensors):
    """Some of the `source`'s tensors, by other names: `names` says for each what the source calls it."""

    def __init__(self, source: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        known = meta_tensors(source)
        super().__init__({name: known[called] for name, called in names.items()})
        self._source, self._called = source, names

    def __getitem__(self, name: str) -> Tensor:
        return self._source[self._called[name]]


def meta_tensors(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What tensors by name are like, none of which is brought for it."""
    if isinstance(tensors, LazyTensors):
        return tensors.outlines
    return {name: tensor.detach().to("meta") for name, tensor in tensors.items()}


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> LazySubset:
    """The tensors but for those whose names begin so."""
    return LazySubset(tensors, {name: name for name in tensors if not name.startswith(prefix)})


def split_parts(tensors: Mapping[str, Tensor]) -> dict[str, LazySubset]:
    """The tensors of each part, by the `part.name` that they are called."""
    named: dict[str, dict[str, str]] = {}
    for name in tensors:
        part, _, rest = name.partition(".")
        named.setdefault(part, {})[rest] = name
    return {part: LazySubset(tensors, names) for part, names in named.items()}
