"""A trial of a search: one training, by the values of one point."""

from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["running", "done", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """Trial `number` from 0 on. `value` is its score, the lower the better, None of one that has none.

    `reports` are its validation losses by step, `reason` is why it failed.
    """

    number: int
    point: dict[str, Any]
    state: State = "running"
    value: float | None = None
    reports: dict[int, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Ended:
    """How a trial ended: its value where it is done, why where it failed."""

    state: State
    value: float | None = None
    reason: str = ""
