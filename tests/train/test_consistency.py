"""Consistency tuning: its minimiser on Gaussian data, its weights, equal dropout masks, and exact resume."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffusion.check.cost_estimate import step_flops
from diffusion.process.noise_process import NoiseProcess, build_process
from diffusion.process.objective import Batch, TrainedNetwork, build_objective
from diffusion.process.process_registry import ProcessConfig
from diffusion.train.batch import ImageLoader, draw_batch
from diffusion.train.initial_state import new_state
from diffusion.train.train_step import accumulate_gradients
from diffusion.train.validation_loss import ValidationLoss
from tests.helpers.trainings import CPU, Killed, assert_same, plan_of, run, run_in, run_until
from tests.train.test_gradients import passes_of

STD, TOP = 0.6, 80.0  # of the data, and the highest noise level
TUNING: dict[str, Any] = {"variance": "small", "loss": "consistency", "t_sampler": "log-normal"}


def process_of(schedule: str, **options: Any) -> NoiseProcess:
    common = {"loss": "consistency", "prediction": "x0", "weighting": "none"}
    own = {"variance": "small"} if schedule == "cosine" else {}
    return build_process(ProcessConfig(schedule=schedule, **{**common, **own, **options}))


def share(level: float, stage: int) -> float:
    """Return the part of a noise level by which the target's is lower (2406.14548, q = 2)."""
    return 2.0 ** -(stage + 1) * (1 + 8 / (1 + math.exp(level)))


def chain(lowest: float, stage: int) -> list[float]:
    """Return TOP, its target's level, that one's target's level, and so on, down to the lowest above 0."""
    levels = [TOP]
    while (lower := levels[-1] * (1 - share(levels[-1], stage))) > lowest:
        levels.append(lower)
    return levels


class Gains(torch.nn.Module):
    """x̂_0 = g·x/α with a learned g for each of the noise levels."""

    def __init__(self, process: NoiseProcess, levels: Tensor, gains: Tensor) -> None:
        super().__init__()
        self.process, self.levels, self.gains = process, levels, torch.nn.Parameter(gains)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Find the noise levels from the times that the network embeds."""
        kind = self.process.config.schedule
        times = {"edm": (t / 250).exp(), "flow": t / 1000, "cosine": t}[kind]
        levels = self.process.noise_level(times)
        nearest = (levels.log()[:, None] - self.levels.log()).abs().argmin(1)
        return (self.gains[nearest] / self.process.alpha_sigma(times)[0])[:, None, None, None] * x


def tuned_gains(levels: Tensor) -> Tensor:
    """Return g(u) = g(r)·Cov(x̄_u, x̄_r)/Var(x̄_u), the minimiser with a fixed target, from low to high."""
    lower = torch.cat([levels[1:], torch.zeros(1, dtype=levels.dtype)])
    factors = (STD**2 + levels * lower) / (STD**2 + levels**2)
    return factors.flip(0).cumprod(0).flip(0)


def batch_of(process: NoiseProcess, levels: Tensor) -> Batch:
    """Return x_0 = (s, 0) with noise (0, 1): squared norms are variances of Gaussian data."""
    x_0, noise = (
        torch.tensor(pair, dtype=torch.float64).expand(len(levels), 1, 1, 2) for pair in ((STD, 0), (0, 1))
    )
    return Batch(x_0, None, process.times_at(levels), torch.ones(len(levels)), noise)


def losses_at(process: NoiseProcess, levels: Tensor, gains: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return the losses of every level, and the gradient of their sum for the gains."""
    network = Gains(process, levels, gains)
    losses = build_objective(process)(TrainedNetwork(network, process), batch_of(process, levels), step)[
        "loss"
    ]
    losses.sum().backward()
    assert network.gains.grad is not None
    return losses.detach(), network.gains.grad


@pytest.mark.parametrize("schedule", ["edm", "cosine", "flow"])
def test_on_gaussian_data_the_minimiser_is_the_flows_end_up_to_the_step(schedule):
    """The log of its gain is off by −∫ Δ(u)·s²/(2(s² + u²)²) du to first order: it halves with a stage."""
    process, errors = process_of(schedule, loss_options={"stage_steps": 10}), []
    lowest = float(process.noise_level(torch.tensor(process.t_min, dtype=torch.float64)))
    flow = math.log(STD / math.hypot(STD, TOP))
    for stage in (4, 5, 6):
        levels = torch.tensor(chain(lowest, stage), dtype=torch.float64)
        gains = tuned_gains(levels)
        losses, gradient = losses_at(process, levels, gains, 10 * stage + 9)
        lower, below = (
            torch.cat([one[1:], end[None]])
            for one, end in ((levels, 0 * gains[0]), (gains, gains[0] / gains[0]))
        )
        variance = STD**2 * (gains - below).square() + (levels * gains - lower * below).square()
        assert torch.allclose(losses, variance.sqrt() / (levels - lower), rtol=1e-6)
        _, elsewhere = losses_at(process, levels, gains * 1.01, 10 * stage)
        assert gradient.abs().max() < 1e-5 * elsewhere.abs().max()
        errors.append(math.log(float(gains[0])) - flow)
    u = torch.logspace(-6, math.log10(TOP), 20001, dtype=torch.float64)
    slope = (1 + 8 * torch.sigmoid(-u)) * u * STD**2 / (2 * (STD**2 + u**2) ** 2)
    first_order = -float(torch.trapezoid(slope, u))
    assert errors[-1] * 2**7 == pytest.approx(first_order, rel=0.05)
    assert [one / two for one, two in itertools.pairwise(errors)] == pytest.approx([2, 2], rel=0.05)


@pytest.mark.parametrize("q", [2.0, 4.0])
def test_late_stages_keep_a_distance_that_float32_resolves(q):
    process = process_of("edm", loss_options={"q": q, "stage_steps": 1})
    levels = torch.logspace(-2, math.log10(TOP), 50, dtype=torch.float64)
    lower = build_objective(process).lower_level(levels, 10**6)
    assert ((levels - lower) / levels).min() >= 1e-4
    assert losses_at(process, levels, torch.ones_like(levels), 10**6)[0].isfinite().all()


def test_weight_and_huber_distance_are_those_of_the_authors_code():
    levels, gains = (
        torch.tensor([5.0, 0.3], dtype=torch.float64),
        torch.tensor([0.2, 0.7], dtype=torch.float64),
    )
    plain = process_of("edm")
    lower = torch.tensor([5.0 * (1 - share(5.0, 0)), 0.0], dtype=torch.float64)
    distance = losses_at(plain, levels, gains, 0)[0] * (levels - lower)
    weighted = process_of("edm", weighting="edm", sigma_data=0.7, loss_options={"huber": 0.1})
    expected = (levels**2 + 0.7**2) / (levels * 0.7) ** 2 * ((distance**2 + 0.01).sqrt() - 0.1)
    assert torch.allclose(losses_at(weighted, levels, gains, 0)[0], expected)


@pytest.mark.slow
def test_a_step_takes_the_flops_of_one_more_forward_pass(store):
    for loss in ("simple", "consistency"):
        state = new_state(plan_of(store, process={**TUNING, "loss": loss}), CPU)
        batch = draw_batch(state.plan, state.time_sampler, ImageLoader(store, CPU), 0)
        with FlopCounterMode(display=False) as counter:
            accumulate_gradients(passes_of(state), batch, 0)
        assert counter.get_total_flops() == pytest.approx(step_flops(state.plan), rel=0.1)


def test_both_passes_of_a_step_have_the_same_dropout_masks(store):
    state = new_state(plan_of(store, model={"dropout": 0.5}, process=TUNING), CPU)
    run_until(state, store, 2)  # the network's output is zero at first
    passes, masks = passes_of(state), []
    for module in state.network.modules():
        if type(module).__name__ == "Dropout":
            module.register_forward_hook(lambda layer, given, output: masks.append((layer, output == 0)))
    accumulate_gradients(passes, draw_batch(state.plan, state.time_sampler, ImageLoader(store, CPU), 2), 2)
    student, teacher = masks[: len(masks) // 2], masks[len(masks) // 2 :]
    assert student
    assert [layer for layer, _ in student] == [layer for layer, _ in teacher]
    assert all(torch.equal(one, two) for (_, one), (_, two) in zip(student, teacher, strict=True))


def test_the_validation_loss_is_that_of_the_last_stage(store):
    plan = plan_of(store, process={**TUNING, "loss_options": {"q": 4, "stage_steps": 4}})
    state, found = new_state(plan, CPU), []
    run_until(state, store, 2)
    for state.step in (2, 8):
        found.append(ValidationLoss(plan, store).losses(state, state.network.eval(), state.ema))
    assert found[0] == found[1]


@pytest.mark.slow
def test_resume_is_bitwise_in_another_stage(store, tmp_path):
    process = {**TUNING, "loss_options": {"q": 4, "stage_steps": 4}}
    plan = plan_of(store, process=process, train={"save_every": 3, "optimizer": "radam"})
    whole = new_state(plan, CPU)
    run(whole, store)
    run_in(store, plan, tmp_path, stop_at=5, error=Killed())
    _, resumed, begun = run_in(store, plan, tmp_path)
    assert begun == 3
    assert_same(resumed, whole)
