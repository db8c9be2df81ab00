"""Arms of equal time or FLOPs: what a step costs, and the steps that follow."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.check.findings import Project
from diffusion.check.timing import Work
from diffusion.layout import VERDICT_RUNS
from diffusion.model.network_registry import build_network
from diffusion.system.errors import UsageError
from diffusion.system.params import with_fields
from diffusion.train.optimizers.builders import matrix_parameters
from diffusion.train.optimizers.lr_schedule import LRSchedule, learning_rate
from diffusion.train.plan import TrainPlan
from diffusion.verdict import equal_work
from diffusion.verdict.arms import Arm
from diffusion.verdict.equal_work import Ratio, flop_ratios, time_ranges, time_ratios, with_equal_work
from tests.conftest import params
from tests.helpers.prepared import copy_data

Make = Callable[..., Arm]


@pytest.fixture
def arm(project: Path) -> Make:
    """Return an arm of the project's settings with changes."""
    copy_data(project)
    return lambda **change: Arm(str(change), with_fields(params(), change))


def newton_schulz(rows: int, columns: int) -> int:
    """Return the FLOPs of Muon for a matrix: its products, by their shapes."""
    rows, columns = sorted((rows, columns))
    square, tall = 2 * rows**3, 2 * rows**2 * columns
    if columns < 2 * rows:
        return 5 * (2 * tall + square)
    return 2 * tall + square + 4 * 4 * square


def test_flops_of_a_step_are_those_of_its_images_and_of_the_optimiser(arm: Make) -> None:
    control, double = arm(), arm(**{"train.batch_size": 2 * params()["train"]["batch_size"]})
    muon = arm(**{"train.optimizer": "muon"})
    assert flop_ratios([control, double]) == [Ratio(2.0, 2.0, 2.0)]
    network = build_network(muon.plan.network)
    extra = sum(newton_schulz(len(one), one[0].numel()) for one in matrix_parameters(network))
    before = equal_work.training_flops(control.plan)
    assert flop_ratios([control, muon])[0].middle == pytest.approx((before + extra) / before)


def test_steps_follow_from_a_clear_ratio_and_the_rate_keeps_its_shares(arm: Make) -> None:
    lr = {"schedule": "cosine", "rate": 0.01, "warmup": 20}
    control, change = (arm(**{"train.steps": 200, "train.lr": lr, "model.channels": n}) for n in (8, 16))
    (scaled,) = with_equal_work(control, [change], [Ratio(1.6, 1.5, 1.7)])
    wanted = with_fields(change.values, {"train.steps": 125, "train.lr.warmup": 12})
    assert scaled.config == Arm("", wanted).config
    assert scaled.name == change.name
    assert with_equal_work(control, [change], [Ratio(1.1, 0.9, 1.3)]) == [change]
    with pytest.raises(UsageError, match=r"train\.steps"):
        equal_work.refuse_steps(control, [arm(**{"train.steps": 100})], "time")


@pytest.mark.parametrize(
    "options",
    [
        {"rate": 0.1, "warmup": 10, "cooldown": 20},
        {"schedule": "cosine", "rate": 0.1, "warmup": 10},
        {"schedule": "linear", "rate": 0.1, "end": 0.01},
        {"schedule": "inverse-sqrt", "rate": 0.1, "hold": 30},
        {"schedule": "steps", "rates": [[0, 0.1], [40, 0.05]]},
    ],
)
def test_stretched_schedule_has_the_same_rate_at_each_share(options: dict[str, Any]) -> None:
    schedule = LRSchedule.model_validate(options)
    threefold = schedule.stretched(3)
    for step in range(100):  # step 3k + 2 ends with the k-th of the warm-up, step 3k begins with it
        assert threefold.base_rate(3 * step, 300) == pytest.approx(schedule.base_rate(step, 100))
    for step in range(schedule.warmup):
        ratios = [learning_rate(one, at, steps) / one.base_rate(at, steps)
                  for one, at, steps in ((schedule, step, 100), (threefold, 3 * step + 2, 300))]  # fmt: skip
        assert ratios[0] == pytest.approx(ratios[1])
    assert threefold.cooldown == 3 * schedule.cooldown


def test_ratio_of_each_round_is_of_its_own_control() -> None:
    slow = [1.0, 50.0] * 7 + [1.0]
    found = [(seconds, seconds * (1.5 + 0.1 * number)) for number, seconds in enumerate(slow)]
    (ratio,) = time_ranges(found)
    assert ratio == pytest.approx((2.2, 1.8, 2.6))
    assert str(Ratio(2.0, 1.9, 2.1)) == "2 (1.9 to 2.1)"


class State:
    """The state of a training on the device."""


def test_time_is_measured_once_with_one_state_at_a_time(arm: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    held: list[int] = []
    states: weakref.WeakSet[State] = weakref.WeakSet()

    def step_work(project: Project, plan: TrainPlan, device: torch.device) -> Work:
        state = State()
        states.add(state)

        def work(images: int, repeats: int) -> list[float]:
            assert list(states) == [state]
            calls.append((plan.train.batch_size, images))
            return [1.0] + [images / 100] * (repeats - 1)  # the first one warms up

        return work

    monkeypatch.setattr(equal_work, "step_work", step_work)

    def device() -> Any:
        held.append(1)
        return torch.device("cpu")  # a context manager

    arms = [arm(**{"train.batch_size": size}) for size in (4, 10)]
    folder = VERDICT_RUNS / "a"
    found = time_ratios(folder, arms, device)
    assert found == [Ratio(2.5, 2.5, 2.5)]
    assert calls == [(4, 4), (10, 10)] * (1 + equal_work.ROUNDS)
    assert time_ratios(folder, arms, device) == found
    assert len(held) == 1
