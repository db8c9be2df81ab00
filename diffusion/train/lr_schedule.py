"""The learning rate as a function of the step: schedules by name, as `train.lr` says them. It loads no torch.

A further one is a subclass of Course here and an entry of LR_SCHEDULES.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from diffusion.system.limits import MAX_COUNT
from diffusion.system.references import check_name
from diffusion.system.registry_section import RegistrySection
from diffusion.system.section import NotBool, PositiveInt

MAX_RATE = 10.0
Rate = Annotated[float, Field(gt=0, le=MAX_RATE), NotBool]
LastRate = Annotated[float, Field(ge=0, le=MAX_RATE), NotBool]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT), NotBool]


@dataclass(frozen=True)
class LRScheduleEntry:
    """`config` is the schedule's class, a subclass of Course, as a "module:name"."""

    config: str


LR_SCHEDULES = {
    "constant": LRScheduleEntry("diffusion.train.lr_schedule:ConstantLR"),
    "cosine": LRScheduleEntry("diffusion.train.lr_schedule:CosineLR"),
    "linear": LRScheduleEntry("diffusion.train.lr_schedule:LinearLR"),
    "inverse-sqrt": LRScheduleEntry("diffusion.train.lr_schedule:InverseSqrtLR"),
    "steps": LRScheduleEntry("diffusion.train.lr_schedule:StepLR"),
}


class LRSchedule(RegistrySection):
    """Fields of every schedule: a linear warm-up from 0 over `warmup` steps, and a cool-down to 0.

    `schedule` is a name of LR_SCHEDULES. The cool-down takes the last `cooldown` steps. Both multiply the
    schedule's own rate. Steps count from 0.
    """

    CHOSEN_BY = "schedule"
    ENTRIES = LR_SCHEDULES

    schedule: Annotated[str, AfterValidator(partial(check_name, registry=LR_SCHEDULES))] = "constant"
    warmup: Count = 0
    cooldown: Count = 0

    def base_rate(self, step: int, steps: int) -> float:
        """The rate of a step of a training of `steps`, without warm-up and cool-down."""
        raise NotImplementedError

    def find_problem(self, steps: int, prefix: str) -> str | None:
        """Why a training of so many steps cannot have this schedule; None where it can.

        `prefix` stands before the section `train`.
        """
        lr = f"{prefix}train.lr"
        if self.warmup > steps:
            return f"lr.warmup {self.warmup} is more than steps {steps}: set {lr}.warmup to {steps} or less"
        if self.warmup + self.cooldown > steps:
            most = steps - self.warmup
            return (
                f"lr.warmup {self.warmup} and lr.cooldown {self.cooldown} overlap in {steps} steps: "
                f"set {lr}.cooldown to {most} or less"
            )
        return None

    def describe(self) -> str:
        """The schedule for people: its name, and what was chosen of it."""
        chosen = self.model_dump(exclude={"schedule"}, exclude_defaults=True)
        return ", ".join([self.schedule, *(f"{name} {value}" for name, value in chosen.items())])


class ConstantLR(LRSchedule):
    """`rate` at every step."""

    schedule: Literal["constant"] = "constant"
    rate: Rate

    def base_rate(self, step: int, steps: int) -> float:
        """The rate."""
        return self.rate


class _Falling(LRSchedule):
    rate: Rate
    end: LastRate = 0.0

    def done(self, step: int, steps: int) -> float:
        """Which part of the way from the warm-up's end to the training's is done, in [0, 1]."""
        return max(0, step - self.warmup) / max(1, steps - self.warmup)


class CosineLR(_Falling):
    """From `rate` after the warm-up to `end` at the training's end by half a cosine (1608.03983, eq. 5)."""

    schedule: Literal["cosine"] = "cosine"

    def base_rate(self, step: int, steps: int) -> float:
        """end + (rate − end)·(1 + cos πf)/2, f the part that is done."""
        return self.end + (self.rate - self.end) * (1 + math.cos(math.pi * self.done(step, steps))) / 2


class LinearLR(_Falling):
    """From `rate` after the warm-up to `end` at the training's end in equal parts."""

    schedule: Literal["linear"] = "linear"

    def base_rate(self, step: int, steps: int) -> float:
        """rate + (end − rate)·f, f the part that is done."""
        return self.rate + (self.end - self.rate) * self.done(step, steps)


class InverseSqrtLR(LRSchedule):
    """`rate` up to step `hold`, then rate/√(step/hold) as EDM2 trains (Karras et al. 2024, 2312.02696)."""

    schedule: Literal["inverse-sqrt"] = "inverse-sqrt"
    rate: Rate
    hold: PositiveInt

    def base_rate(self, step: int, steps: int) -> float:
        """rate/√max(step/hold, 1)."""
        return self.rate / math.sqrt(max(1.0, step / self.hold))


class StepLR(LRSchedule):
    """`rates` lists [from, rate]: each holds from its step to the next one's, the last one to the end."""

    schedule: Literal["steps"] = "steps"
    rates: Annotated[tuple[tuple[Count, Rate], ...], Field(min_length=1, max_length=100)]

    @model_validator(mode="after")
    def _one_after_another(self) -> Self:
        begins = [begin for begin, _ in self.rates]
        if begins[0] != 0:
            raise ValueError(f"rates begins at step {begins[0]:,}: its first part must be from 0")
        for before, after in pairwise(begins):
            if after == before:
                raise ValueError(f"rates has two parts from step {after:,}, which overlap: take one out")
            if after < before:
                raise ValueError(f"rates goes back from step {before:,} to {after:,}: list them in order")
        return self

    def base_rate(self, step: int, steps: int) -> float:
        """The rate of the last part that has begun."""
        return next(rate for begin, rate in reversed(self.rates) if begin <= step)

    def find_problem(self, steps: int, prefix: str) -> str | None:
        """As any schedule; also where a part would never begin."""
        last, _ = self.rates[-1]
        if last >= steps:
            return (
                f"lr.rates: a training of {steps:,} steps does not reach the part from step {last:,}: "
                f"take it out, or raise {prefix}train.steps"
            )
        return super().find_problem(steps, prefix)


def parse_lr(value: Any) -> Any:
    """What stands in `train.lr` as the fields of a schedule: a number is a constant rate."""
    return value if isinstance(value, dict | LRSchedule) else {"rate": value}


def learning_rate(schedule: LRSchedule, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of a training of `steps`, warm-up and cool-down included."""
    rate = schedule.base_rate(step, steps)
    if step < schedule.warmup:
        rate = rate * (step + 1) / schedule.warmup
    if steps - step < schedule.cooldown:
        rate = rate * (steps - step) / schedule.cooldown
    return rate


def first_divergent_step(schedule: LRSchedule, steps: int, other: LRSchedule, other_steps: int) -> int | None:
    """The first step of both trainings at which their rates differ; None where none does."""
    for step in range(min(steps, other_steps)):
        if learning_rate(schedule, step, steps) != learning_rate(other, step, other_steps):
            return step
    return None
