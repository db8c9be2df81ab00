"""Learning-rate schedules by name, as in `train.lr`. Loads no torch.

A new one is a subclass of LRSchedule here and an entry of LR_SCHEDULES.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from diffusion.system.limits import MAX_COUNT
from diffusion.system.registry import Registry, check_name, reference_module
from diffusion.system.section import NotBool, PositiveInt, RegistrySection

MAX_RATE = 10.0
Rate = Annotated[float, Field(gt=0, le=MAX_RATE), NotBool]
LastRate = Annotated[float, Field(ge=0, le=MAX_RATE), NotBool]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT), NotBool]


@dataclass(frozen=True)
class LRScheduleEntry:
    """`config` is the schedule's class, a subclass of LRSchedule, as a "module:name"."""

    config: str

    @property
    def module(self) -> str:
        """The module that computes the rates."""
        return reference_module(self.config)


LR_SCHEDULES: Registry[LRScheduleEntry] = Registry(
    "train.lr.schedule",
    "a subclass of `LRSchedule`: step → rate",
    {
        "constant": LRScheduleEntry("diffusion.train.optimizers.lr_schedule:ConstantLR"),
        "cosine": LRScheduleEntry("diffusion.train.optimizers.lr_schedule:CosineLR"),
        "linear": LRScheduleEntry("diffusion.train.optimizers.lr_schedule:LinearLR"),
        "inverse-sqrt": LRScheduleEntry("diffusion.train.optimizers.lr_schedule:InverseSqrtLR"),
        "steps": LRScheduleEntry("diffusion.train.optimizers.lr_schedule:StepLR"),
    },
)


class LRSchedule(RegistrySection):
    """The base of all schedules: warm-up over the first `warmup` steps, cool-down over the last `cooldown`.

    `schedule` is a name of LR_SCHEDULES. Warm-up and cool-down are linear, from 0 and to 0, and multiply the
    schedule's own rate. Steps count from 0.
    """

    CHOSEN_BY = "schedule"
    ENTRIES = LR_SCHEDULES

    schedule: Annotated[str, AfterValidator(partial(check_name, registry=LR_SCHEDULES))] = "constant"
    warmup: Count = 0
    cooldown: Count = 0

    def base_rate(self, step: int, steps: int) -> float:
        """Return the rate of a step, without warm-up and cool-down."""
        raise NotImplementedError

    def check_length(self, steps: int, prefix: str) -> None:
        """Raise ValueError if a training of `steps` cannot have it; `prefix` is before `train`."""
        lr, warmup, most = f"{prefix}train.lr", self.warmup, steps - self.warmup
        if most < 0:
            raise ValueError(f"lr.warmup {warmup} is more than steps {steps}: lower {lr}.warmup")
        if self.cooldown > most:
            raise ValueError(
                f"lr.warmup {warmup} and lr.cooldown {self.cooldown} overlap in {steps} steps: "
                f"set {lr}.cooldown to {most} or less"
            )

    def stretched(self, factor: float) -> Self:
        """Return the schedule of a training `factor` times as long: at each share of it, the same rate."""
        counts = {"warmup": int(factor * self.warmup), "cooldown": int(factor * self.cooldown)}
        return self.model_copy(update=counts)

    def describe(self) -> str:
        """Return the schedule's name and its options that are not defaults."""
        options = self.model_dump(exclude={"schedule"}, exclude_defaults=True)
        return ", ".join([self.schedule, *(f"{name} {value}" for name, value in options.items())])


class ConstantLR(LRSchedule):
    """`rate` at every step."""

    schedule: Literal["constant"] = "constant"
    rate: Rate

    def base_rate(self, step: int, steps: int) -> float:
        """Return `rate`."""
        return self.rate


class _Falling(LRSchedule):
    rate: Rate
    end: LastRate = 0.0

    def progress(self, step: int, steps: int) -> float:
        """Return the progress from the end of the warm-up to the end of the training, in [0, 1]."""
        return max(0, step - self.warmup) / max(1, steps - self.warmup)


class CosineLR(_Falling):
    """Half a cosine from `rate` after the warm-up to `end` after the last step (1608.03983, eq. 5)."""

    schedule: Literal["cosine"] = "cosine"

    def base_rate(self, step: int, steps: int) -> float:
        """Return end + (rate − end)·(1 + cos πp)/2 with the progress p."""
        return self.end + (self.rate - self.end) * (1 + math.cos(math.pi * self.progress(step, steps))) / 2


class LinearLR(_Falling):
    """A line from `rate` after the warm-up to `end` after the last step."""

    schedule: Literal["linear"] = "linear"

    def base_rate(self, step: int, steps: int) -> float:
        """Return rate + (end − rate)·p with the progress p."""
        return self.rate + (self.end - self.rate) * self.progress(step, steps)


class InverseSqrtLR(LRSchedule):
    """`rate` up to step `hold`, then rate/√(step/hold), as in EDM2 (2312.02696)."""

    schedule: Literal["inverse-sqrt"] = "inverse-sqrt"
    rate: Rate
    hold: PositiveInt

    def base_rate(self, step: int, steps: int) -> float:
        """Return rate/√max(step/hold, 1)."""
        return self.rate / math.sqrt(max(1.0, step / self.hold))

    def stretched(self, factor: float) -> Self:
        """As the base, with `hold`."""
        return super().stretched(factor).model_copy(update={"hold": max(1, int(factor * self.hold))})


class StepLR(LRSchedule):
    """`rates` lists [step, rate]: each rate applies from its step until the next entry's."""

    schedule: Literal["steps"] = "steps"
    rates: Annotated[tuple[tuple[Count, Rate], ...], Field(min_length=1, max_length=100)]

    @model_validator(mode="after")
    def _rates_are_in_order(self) -> Self:
        starts = [start for start, _ in self.rates]
        if starts[0] != 0:
            raise ValueError(f"rates starts at step {starts[0]:,}: its first step must be 0")
        for before, after in pairwise(starts):
            if after <= before:
                raise ValueError(f"rates has step {after:,} after step {before:,}: list each once, in order")
        return self

    def base_rate(self, step: int, steps: int) -> float:
        """Return the rate of the last entry up to this step."""
        return next(rate for start, rate in reversed(self.rates) if start <= step)

    def check_length(self, steps: int, prefix: str) -> None:
        """As the base; also if an entry is never reached."""
        last, _ = self.rates[-1]
        if last >= steps:
            raise ValueError(
                f"lr.rates: a training of {steps:,} steps does not reach the entry of step {last:,}: "
                f"remove it, or raise {prefix}train.steps"
            )
        super().check_length(steps, prefix)

    def stretched(self, factor: float) -> Self:
        """As the base, with the first step of each rate; of rates with the same one the last stays."""
        rates = tuple({int(factor * start): rate for start, rate in self.rates}.items())
        return super().stretched(factor).model_copy(update={"rates": rates})


def parse_lr(value: Any) -> Any:
    """Return the value of `train.lr` as a schedule's fields: a number is a constant rate."""
    return value if isinstance(value, dict | LRSchedule) else {"rate": value}


def learning_rate(schedule: LRSchedule, step: int, steps: int) -> float:
    """Return the rate of step `step` (from 0) of a training of `steps`, with warm-up and cool-down."""
    rate = schedule.base_rate(step, steps)
    if step < schedule.warmup:
        rate = rate * (step + 1) / schedule.warmup
    if steps - step < schedule.cooldown:
        rate = rate * (steps - step) / schedule.cooldown
    return rate


def first_divergent_step(schedule: LRSchedule, steps: int, other: LRSchedule, other_steps: int) -> int | None:
    """Return the first common step at which the rates differ, None without one."""
    is_constant = schedule.schedule == "constant" and not schedule.cooldown
    if schedule == other and (steps == other_steps or is_constant):
        return None  # without a loop over millions of steps
    for step in range(min(steps, other_steps)):
        if learning_rate(schedule, step, steps) != learning_rate(other, step, other_steps):
            return step
    return None
