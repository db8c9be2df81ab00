"""Arms of equal training time or FLOPs instead of equal steps: what a step costs, and the steps of each arm.

Steps are fixed before the first training. So trainings stay exact and resumable, and are found by their
content, which a training that stops by the clock is not.
"""

import gc
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field

from diffusion.check.cost_estimate import step_flops
from diffusion.check.findings import Project
from diffusion.check.timing import step_work
from diffusion.model.counted_passes import FlopCounter
from diffusion.system.checksums import add_checksum, read_checksummed_json
from diffusion.system.errors import UsageError
from diffusion.system.files import write_json
from diffusion.system.params import with_fields
from diffusion.system.section import Section
from diffusion.train.initial_state import new_state
from diffusion.train.plan import TrainPlan
from diffusion.verdict.arms import Arm

TIMES = "step_seconds.json"  # in a verdict's folder
ROUNDS = 15
TAIL = 3  # rounds left out at either end: the others contain the median with a probability of 96%
ROUND_SECONDS = 0.5  # of an arm's steps in a round
MAX_ROUND_STEPS = 200

Quantity = Literal["steps", "time", "flops"]


class Times(Section):
    """The seconds of a step of each arm, by round. In a round the arms run one after another."""

    rounds: Annotated[tuple[tuple[float, ...], ...], Field(min_length=2 * TAIL + 1, max_length=100)]


class Ratio(NamedTuple):
    """What a step of a change costs, as a multiple of the control's: the median of rounds, its interval."""

    middle: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the steps differ in cost by more than the measurement."""
        return not self.low <= 1 <= self.high

    def __str__(self) -> str:
        between = f" ({self.low:.3g} to {self.high:.3g})" if self.low < self.high else ""
        return f"{self.middle:.3g}{between}"


def refuse_steps(control: Arm, changes: Sequence[Arm], quantity: Quantity) -> None:
    """Raise UsageError if a change sets the steps itself."""
    for arm in changes:
        if arm.config.train.steps != control.config.train.steps:
            found = f"--equal {quantity} sets the steps of {arm.name}, which changes train.steps"
            raise UsageError(f"{found}: leave it equal in both arms")


def flop_ratios(arms: Sequence[Arm]) -> list[Ratio]:
    """Return the ratios of the changes by FLOPs, which are equal on all machines."""
    control, *changes = (training_flops(arm.plan) for arm in arms)
    return [Ratio(*[one / control] * 3) for one in changes]


def training_flops(plan: TrainPlan) -> int:
    """Return the FLOPs of a training step, with the matrix products of the optimiser."""
    state = new_state(plan, torch.device("cpu"))
    for parameter in state.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with FlopCounter() as optimizer:
        state.optimizer.step()
    of_optimizer: int = optimizer.total
    return step_flops(plan) + of_optimizer


def time_ratios(folder: Path, arms: Sequence[Arm], device: Callable[[], Any]) -> list[Ratio]:
    """Return the ratios of the changes by time, measured once and stored in the folder.

    `device` returns a context manager of the device to measure on.
    """
    times = None
    with suppress(FileNotFoundError):
        times = read_checksummed_json(folder / TIMES, Times)
    if times is None:
        with device() as held:
            times = Times(rounds=_measure(arms, held))
        write_json(folder / TIMES, add_checksum(times.model_dump(mode="json")))
    return time_ranges(times.rounds)


def time_ranges(rounds: Sequence[Sequence[float]]) -> list[Ratio]:
    """Return the ratio of each change. Each round has its own: a machine's speed varies between rounds."""
    ratios = [[one / control for one in changes] for control, *changes in rounds]
    ordered = [sorted(found) for found in zip(*ratios, strict=True)]
    return [Ratio(median(found), found[TAIL], found[-1 - TAIL]) for found in ordered]


def _measure(arms: Sequence[Arm], device: torch.device) -> tuple[tuple[float, ...], ...]:
    """Time steps of the arms in turns, without torch.compile.

    An arm has a new state each time: a device may have no room for those of all arms.
    """
    projects = [Project(arm.config) for arm in arms]

    def seconds(number: int, count: int) -> float:
        """Return the median of `count` steps of an arm, after one that warms up."""
        plan = arms[number].plan
        found = step_work(projects[number], plan, device)(plan.train.batch_size, count + 1)
        return median(found[1:] or found)

    numbers = range(len(arms))
    first = []
    for number in numbers:
        first.append(seconds(number, 1))
        gc.collect()  # the import of torch.compile, at the first state, leaves it in a cycle
    counts = [max(1, min(MAX_ROUND_STEPS, int(ROUND_SECONDS / max(one, 1e-9)))) for one in first]
    return tuple(tuple(seconds(number, counts[number]) for number in numbers) for _ in range(ROUNDS))


def with_equal_work(control: Arm, changes: Sequence[Arm], ratios: Sequence[Ratio]) -> list[Arm]:
    """Return the changes with the steps that cost as much as the control's.

    A change keeps its steps if its ratio is not clear. Steps of the learning-rate schedule keep their share.
    """
    return [_scaled(arm, control, ratio) for arm, ratio in zip(changes, ratios, strict=True)]


def _scaled(arm: Arm, control: Arm, ratio: Ratio) -> Arm:
    before = control.config.train.steps
    steps = max(1, round(before / ratio.middle)) if ratio.is_clear else before
    if steps == before:
        return arm
    point: dict[str, Any] = {"train.steps": steps}
    own = arm.config.train.lr
    if (lr := own.stretched(steps / before)) != own:
        point["train.lr"] = lr.model_dump(mode="json")
    return replace(arm, values=with_fields(arm.values, point))
