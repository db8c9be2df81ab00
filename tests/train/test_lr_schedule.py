"""Learning-rate schedules: closed forms, and what is refused."""

import math
from typing import Any

import pytest

from diffusion.config import parse
from diffusion.system.errors import UsageError
from diffusion.train.optimizers.lr_schedule import LRSchedule, first_divergent_step, learning_rate
from diffusion.train.train_config import TrainConfig
from tests.conftest import params


def schedule(steps: int, lr: Any) -> LRSchedule:
    return TrainConfig.model_validate({"steps": steps, "batch_size": 1, "lr": lr}).lr


def rates(steps: int, lr: Any) -> list[float]:
    made = schedule(steps, lr)
    return [learning_rate(made, step, steps) for step in range(steps)]


def test_cosine_falls_to_its_end() -> None:
    found = rates(12, {"schedule": "cosine", "rate": 1.0, "warmup": 2})
    assert [found[step] for step in (0, 1, 2, 7)] == pytest.approx([0.5, 1.0, 1.0, 0.5])
    assert found[11] == pytest.approx((1 + math.cos(0.9 * math.pi)) / 2)
    higher = rates(12, {"schedule": "cosine", "rate": 1.0, "warmup": 2, "end": 0.5})
    assert higher[2:] == pytest.approx([0.5 + rate / 2 for rate in found[2:]])


@pytest.mark.parametrize(
    ("lr", "found"),
    [
        (0.4, [0.4] * 3),
        ({"rate": 0.4, "warmup": 4, "cooldown": 4}, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.3, 0.2, 0.1]),
        ({"schedule": "linear", "rate": 1.0}, [1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "linear", "rate": 1.0, "end": 3.0}, [1.0, 1.5, 2.0, 2.5]),
        ({"schedule": "steps", "rates": [[0, 0.3], [2, 0.2], [5, 0.1]]}, [0.3, 0.3, 0.2, 0.2, 0.2, 0.1]),
        (
            {"schedule": "inverse-sqrt", "rate": 1.0, "hold": 1},
            [1.0, 1.0, 0.5**0.5, 3**-0.5, 0.5, 5**-0.5, 6**-0.5],
        ),
        ({"schedule": "inverse-sqrt", "rate": 1.0, "hold": 4}, [1.0] * 5 + [0.8**0.5]),
    ],
)
def test_rates_equal_their_closed_forms(lr: Any, found: list[float]) -> None:
    assert rates(len(found), lr) == pytest.approx(found, rel=1e-12)


COSINE = {"schedule": "cosine", "rate": 0.1, "warmup": 9}


@pytest.mark.parametrize(
    ("lr", "other", "other_steps", "diverges_at"),
    [
        (0.1, 0.1, 80, None),
        (0.1, 0.2, 60, 0),
        (0.1, {"schedule": "steps", "rates": [[0, 0.1], [40, 0.05]]}, 60, 40),
        ({"rate": 0.1, "cooldown": 20}, {"rate": 0.1, "cooldown": 20}, 80, 41),
        (COSINE, COSINE, 80, 10),
        ({"schedule": "inverse-sqrt", "rate": 0.1, "hold": 7}, 0.1, 30, 8),
    ],
)
def test_first_divergent_step(lr: Any, other: Any, other_steps: int, diverges_at: int | None) -> None:
    one, another = schedule(60, lr), schedule(other_steps, other)
    assert first_divergent_step(one, 60, another, other_steps) == diverges_at
    assert first_divergent_step(another, other_steps, one, 60) == diverges_at


def test_equal_schedules_are_compared_without_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("diffusion.train.optimizers.lr_schedule.learning_rate")
    constant, cosine = schedule(60, {"rate": 0.1, "warmup": 5}), schedule(60, COSINE)
    assert first_divergent_step(constant, 60, constant, 10**9) is None
    assert first_divergent_step(cosine, 10**9, cosine, 10**9) is None


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        ({"rate": 1, "warmup": 8, "cooldown": 5},
         "train: lr.warmup 8 and lr.cooldown 5 overlap in 12 steps: set train.lr.c"),
        ({"schedule": "steps", "rates": [[0, 1], [12, 0.1]]},
         "train: lr.rates: a training of 12 steps does not reach the entry of step 12"),
        ({"schedule": "steps", "rates": [[3, 1]]}, "rates starts at step 3"),
        ({"schedule": "steps", "rates": [[0, 1], [5, 0.1], [4, 0.2]]}, "rates has step 4 after step 5"),
        ({"schedule": "steps", "rates": [[0, 1], [5, 0.1], [5, 0.2]]}, "rates has step 5 after step 5"),
        ({"schedule": "steps", "rate": 1}, "train.lr.rate: steps has no such option; it belongs to con"),
        ({"schedule": "linear"}, "train.lr.rate: it is missing"),
        (True, "train.lr.rate: it must be a number"),
    ],
)  # fmt: skip
def test_an_impossible_schedule_is_refused_in_one_sentence(lr: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse(params(train={"lr": lr}), "params.yaml")
    assert "\n" not in str(caught.value)
