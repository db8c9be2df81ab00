"""The gradient's norm: clipped to what `train.grad_clip` says or left alone, and told before that."""

from pathlib import Path

import pytest
import torch

from diffusion.config import parse
from diffusion.images.store import open_store
from diffusion.system.errors import UsageError
from diffusion.train.batch import draw_batch
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.gradients import GradientAccumulator
from diffusion.train.loader import ImageLoader
from diffusion.train.loop import new_state, train_step
from diffusion.train.plan import plan_training
from tests.conftest import params

CPU = torch.device("cpu")
BETA_1 = 0.9  # AdamW's: after one step the first moment is (1 − β₁) times the gradient


def norms_of_a_step(store: Path, **train: float | None) -> tuple[float, float]:
    """The norm that the first step tells, and that of the gradient which the optimiser saw."""
    opened = open_store(store)
    plan = plan_training(parse(params(train={"precision": "fp32", **train}), "test"), opened.meta, CPU)
    state = new_state(plan, CPU)
    batch = draw_batch(plan, state.timesteps, ImageLoader(opened, CPU), 0)
    means = train_step(state, GradientAccumulator(plan, state.network, ProcessGroup(CPU)), batch)
    moments = [values["exp_avg"].flatten() for values in state.optimizer.state.values()]
    return float(means["grad_norm"]), float(torch.cat(moments).norm()) / (1 - BETA_1)


def test_without_clipping_the_gradient_is_left_alone_and_its_norm_told(digits_store: Path) -> None:
    told, seen = norms_of_a_step(digits_store, grad_clip=None)
    assert seen == pytest.approx(told, rel=1e-5)
    assert norms_of_a_step(digits_store, grad_clip=told / 3) == pytest.approx((told, told / 3), rel=1e-4)
    assert norms_of_a_step(digits_store, grad_clip=told * 3) == pytest.approx((told, told), rel=1e-5)


@pytest.mark.parametrize("wrong", [0, -1.0])
def test_a_bound_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(UsageError, match=r"train\.grad_clip: .*greater than 0"):
        parse(params(train={"grad_clip": wrong}), "test")
