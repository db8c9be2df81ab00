"""From the weights of one network to those that another one starts with: what is taken, by which rule.

A network's entry in MODELS names the rule of its own; the one here takes weights that have the same names and
shapes. A rule sees names and shapes alone where its tensors hold no values, so that it can say before a
training begins what it would refuse.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from diffusion.model.model_config import NetworkSpec
from diffusion.model.network_registry import MODELS
from diffusion.system.errors import UsageError
from diffusion.system.references import load_reference

Weights = Mapping[str, Tensor]


class Incompatible(UsageError):
    """Pretrained weights do not fit the network."""


@dataclass(frozen=True)
class Source:
    """A trained network: its weights by name, its spec, and the names of its classes in label order."""

    weights: Weights
    spec: NetworkSpec
    classes: tuple[str, ...]


class Transferred(NamedTuple):
    """All weights of the new network, and the names of those that are random in whole or in part."""

    weights: dict[str, Tensor]
    new: frozenset[str] = frozenset()


def transfer(start: Source, spec: NetworkSpec, classes: tuple[str, ...], drawn: Weights) -> Transferred:
    """The weights that a network of this spec begins with, for these classes.

    `drawn` are its own random weights, which stay where the rule transfers none. Incompatible names the
    first field or weight that does not fit.
    """
    if start.spec.name != spec.name:
        raise Incompatible(f"model.name is {spec.name}, and the start is a {start.spec.name}")
    rule = load_reference(MODELS[spec.name].transfer)
    taken: Transferred = rule(start, spec, classes, drawn)
    return taken


def transfer_unchanged(
    start: Source, spec: NetworkSpec, classes: tuple[str, ...], drawn: Weights
) -> Transferred:
    """All weights as they are: for a network of the same shape and the same classes."""
    check_same_options(start.spec, spec)
    if start.classes != classes:
        raise Incompatible(f"a {spec.name} starts from one of the same classes in the same order only")
    return Transferred(copy_weights(start.weights, drawn))


def check_same_options(start: NetworkSpec, spec: NetworkSpec, free: frozenset[str] = frozenset()) -> None:
    """Incompatible where an option of the network itself differs: equal weights would mean another thing.

    What any network has (NetworkSpec) may differ, and what is `free`.
    """
    free |= NetworkSpec.model_fields.keys()
    for field in type(spec).model_fields.keys() - free:
        ours, theirs = getattr(spec, field), getattr(start, field)
        if ours != theirs:
            raise Incompatible(f"model.{field} is {_shown(ours)}, and the start has {_shown(theirs)}")


def copy_weights(theirs: Weights, drawn: Weights) -> dict[str, Tensor]:
    """Their weights; Incompatible names the first that is missing, left over or of another shape."""
    for name in sorted(theirs.keys() | drawn.keys()):
        if name not in theirs:
            raise Incompatible(f"the start has no {name}, which the network needs")
        if name not in drawn:
            raise Incompatible(f"the start has {name}, which the network does not know")
        if theirs[name].shape != drawn[name].shape:
            raise Incompatible(
                f"{name} has shape {tuple(theirs[name].shape)} in the start, and the network wants "
                f"{tuple(drawn[name].shape)}"
            )
    return dict(theirs)


def _shown(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)
