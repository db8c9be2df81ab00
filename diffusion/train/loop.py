"""Training as a function of one counter: step k's batch, timesteps and noise come from (seed, k) alone.

So a killed training goes on from its newest state, on a CPU bit for bit, and needs nothing but the counter,
the weights, their average and the optimiser's moments.
"""

import math
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from diffusion.images.store import ImageStore
from diffusion.model.precision import image_layout
from diffusion.process.noise import generator
from diffusion.process.registry import build_process
from diffusion.process.timesteps import UniformSampler
from diffusion.system.allocator import keep_freed_memory
from diffusion.system.errors import DiffctlError, Interrupted
from diffusion.train.async_metrics import AsyncMetrics
from diffusion.train.batch import Batch, batches
from diffusion.train.distributed import ProcessGroup, RankLost
from diffusion.train.ema import ema_copy, ema_update, warmed_decay
from diffusion.train.gradients import GradientAccumulator
from diffusion.train.identity import TrainPlan, build_objective
from diffusion.train.loader import Batches
from diffusion.train.loss_by_timestep import quartile_sums, with_quartile_means
from diffusion.train.memory import shortage_told
from diffusion.train.precision import set_tf32
from diffusion.train.state import OptimizerState, Part, Resumable
from diffusion.train.watching import only_watching

MAX_BAD_STEPS = 5  # non-finite steps in a row that end a training


class Diverged(DiffctlError):
    """Loss or gradient was not finite for too many steps in a row."""


class Observer(Protocol):
    """What watches a training. Nothing that it does changes the result, nor does what it fails at."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Means since the last call, after `step` steps."""

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        """Called after every step with the newest means."""

    def preview(self, step: int, network: nn.Module, ema: nn.Module) -> None:
        """Called where `train.is_previewed`."""

    def evaluate(self, step: int, ema: nn.Module) -> None:
        """Called where `train.is_scored`."""


class Silent:
    """An observer that does nothing."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Ignore the means."""

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        """Ignore the step."""

    def preview(self, step: int, network: nn.Module, ema: nn.Module) -> None:
        """Draw nothing."""

    def evaluate(self, step: int, ema: nn.Module) -> None:
        """Score nothing."""


@dataclass
class TrainState(Resumable):
    """A training after `step` steps: the network as it is, and its average, which becomes the result."""

    plan: TrainPlan
    network: nn.Module
    ema: nn.Module
    optimizer: torch.optim.AdamW
    timesteps: UniformSampler

    def parts(self) -> dict[str, Part]:
        """Weights, EMA, optimiser moments and what the timestep sampler learned."""
        return {
            "network": self.network,
            "ema": self.ema,
            "optimizer": OptimizerState(self.optimizer),
            "timesteps": self.timesteps,
        }


def new_state(plan: TrainPlan, device: torch.device) -> TrainState:
    """Step 0: weights drawn from the training's seed."""
    train, objective = plan.train, build_objective(plan)
    with shortage_told(train.PREFIX):
        with torch.random.fork_rng(devices=[]):  # the initialisers know the global generator only
            torch.manual_seed(generator(objective.purposes.weights, train.seed).initial_seed())
            network = objective.network(plan.network)
        keep_freed_memory(device.type)
        network = network.to(device).train()
        network.to(memory_format=image_layout(plan.precision, device))  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True
        )
        timesteps = objective.timesteps(build_process(plan.process))
        return TrainState(plan, network, ema_copy(network), optimizer, timesteps, code=list(plan.code))


def learning_rate(plan: TrainPlan, step: int) -> float:
    """The rate of step k: a linear warm-up, then constant or down a half cosine that ends at 0."""
    train = plan.train
    if step < train.warmup:
        return train.lr * (step + 1) / train.warmup
    if train.lr_decay == "none":
        return train.lr
    return train.lr * (1 + math.cos(math.pi * (step - train.warmup) / (train.steps - train.warmup))) / 2


def train_step(state: TrainState, gradients: GradientAccumulator, batch: Batch) -> dict[str, Tensor]:
    """One optimiser step in place; returns the step's means on the device, for which nothing has waited.

    A non-finite loss or gradient changes neither weights nor moments nor EMA: the optimiser skips it by
    itself, and the means say so.
    """
    train = state.plan.train
    losses, index, weights = gradients(batch, state.step)
    norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), train.grad_clip or math.inf)
    means = {name: (value * weights).mean() for name, value in losses.items()} | {"grad_norm": norm}
    finite = torch.stack(list(means.values())).isfinite().all()  # not of what only people look at
    means |= quartile_sums(losses["loss"], index, state.plan.process.timesteps)
    if state.timesteps.learns and finite:
        state.timesteps.update(index, losses["loss"])
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.plan, state.step)
    state.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # as torch's GradScaler says it
    state.optimizer.step()
    ema_update(state.ema, state.network, warmed_decay(train.ema_decay, state.step), finite)
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return means


def train(
    state: TrainState,
    store: ImageStore,
    group: ProcessGroup,
    observer: Observer,
    save: Callable[[TrainState], None],
    check_stop: Callable[[], None],
) -> None:
    """Train to the plan's last step, in place, saving every `save_every` steps and at the end.

    Of several processes all call this alike; the first one's observer and `save` matter. `check_stop` runs
    between steps and raises to stop; the state is saved first, as it is when another process is lost, but
    on a GPU: there it could not be read any more, and the newest saved state stands. Diverged after five
    non-finite steps in a row, with the last finite weights saved; the first process notices it for all.
    """
    config, saved_at = state.plan.train, state.step
    set_tf32(config.tf32, group.device)
    gradients, async_metrics = GradientAccumulator(state.plan, state.network, group), AsyncMetrics()
    with (
        shortage_told(config.PREFIX),
        closing(_coming(state, Batches(store, group.device), gradients.share)) as coming,
    ):
        while state.step < config.steps:
            try:
                check_stop()
                async_metrics.add(train_step(state, gradients, next(coming)))
                _take(state, async_metrics, observer, group.is_first)
            except (Interrupted, RankLost, Diverged) as error:
                if isinstance(error, RankLost) and group.loss_blocks:
                    raise  # and `over` stays unset: who watches ends this process, should it not end itself
                group.over.set()
                for means in async_metrics.arrived(everything=True):
                    state.count(means)
                if saved_at != state.step or state.step == 0:
                    save(state)
                raise
            if config.is_saved(state.step):
                save(state)
                saved_at = state.step


def _coming(state: TrainState, data: Batches, share: slice) -> Generator[Batch, None, None]:
    """The `share` of every step's batch that is still to come."""
    plan, steps = state.plan, range(state.step, state.plan.train.steps)
    return batches(plan, state.timesteps, data, steps, share, build_objective(plan).purposes.steps)


def _take(state: TrainState, async_metrics: AsyncMetrics, observer: Observer, is_first: bool) -> None:
    """Count the means that have arrived, all of them where they are looked at, and tell the observer.

    Diverged after five non-finite steps in a row; on a GPU that is noticed a few steps later, on each at
    another one, so that the first process alone ends the training.
    """
    train, step, longest = state.plan.train, state.step, 0
    due = train.is_logged(step) or train.is_saved(step) or train.is_previewed(step)
    for means in async_metrics.arrived(everything=due):
        state.count(means)
        longest = max(longest, state.bad_in_a_row)
    _observe(state, observer, async_metrics.newest)
    if longest >= MAX_BAD_STEPS and is_first:
        raise Diverged(
            f"training stopped after {MAX_BAD_STEPS} non-finite steps in a row, at step {state.step}: "
            f"lower {train.PREFIX}train.lr, or set {train.PREFIX}train.precision: fp32; the last finite "
            "weights are saved"
        )


def _observe(state: TrainState, observer: Observer, means: dict[str, float]) -> None:
    """Tell the observer what it is time for: the window's means, the newest, a preview, a score."""
    config = state.plan.train
    if config.is_logged(state.step):
        values = with_quartile_means(state.take_means())
        values |= {"lr": learning_rate(state.plan, state.step - 1), "skipped_steps": float(state.skipped)}
        if config.is_charted(state.step):
            state.history.append({"step": state.step, **values})
        with only_watching(f"metrics of step {state.step:,}"):
            observer.metrics(state.step, values)
    with only_watching("live line"):
        observer.progress(state.step, config.steps, means)
    if config.is_previewed(state.step):
        with only_watching(f"preview of step {state.step:,}"):
            observer.preview(state.step, state.network, state.ema)
    if config.is_scored(state.step):
        with only_watching(f"score of step {state.step:,}"):
            observer.evaluate(state.step, state.ema)
