"""Training as a function of one counter: step k's batch, timesteps and noise come from (seed, k) alone.

So a killed training goes on from its newest state, on a CPU bit for bit, and needs nothing but the counter,
the weights, their average and the optimiser's moments.
"""

import math
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from diffusion.images.store import ImageStore
from diffusion.layout import STARTS
from diffusion.model.precision import memory_layout
from diffusion.process.noise import counter_generator
from diffusion.process.process_registry import build_process
from diffusion.process.timestep_samplers import UniformSampler
from diffusion.system.errors import DiffctlError, Interrupted
from diffusion.system.malloc import keep_freed_memory
from diffusion.train import validation_loss
from diffusion.train.batch import Batch, batches
from diffusion.train.checkpoint.lazy_tensors import without_prefix
from diffusion.train.checkpoint.resumable import ModuleState, OptimizerState, Resumable, StatePart
from diffusion.train.checkpoint.state_files import SavedState
from diffusion.train.distributed.process_group import ProcessGroup, RankFailed
from diffusion.train.distributed.rank_zero import rank_zero_first
from diffusion.train.distributed.sharding import Shards, is_sharded, shard_network
from diffusion.train.ema import ema_copy, ema_update, warmed_decay
from diffusion.train.ema_profiles import new_profiles, update_profiles
from diffusion.train.gradients import GradientAccumulator
from diffusion.train.loader import ImageLoader
from diffusion.train.loss_by_timestep import quartile_sums, with_quartile_means
from diffusion.train.lr_schedule import learning_rate
from diffusion.train.observers import observer_guard
from diffusion.train.optimizers import make_optimizer
from diffusion.train.plan import TrainPlan, build_objective
from diffusion.train.precision import set_tf32
from diffusion.train.pretrained import init_network
from diffusion.train.step_memory import translate_oom
from diffusion.train.step_metrics import AsyncMetrics
from diffusion.train.train_config import CURVE_ROWS, OptimisationConfig

MAX_BAD_STEPS = 5  # non-finite steps in a row that end a training
IGNORES_FOUND_INF = (
    "mps",
)  # kinds of device on which the fused optimiser took no notice of found_inf (pytorch#186360)


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

    def validate(self, step: int, network: nn.Module, ema: nn.Module) -> dict[str, float]:
        """Called where `train.is_validated`; returns validation losses for the curve, or none."""

    def evaluate(self, step: int, ema: nn.Module) -> None:
        """Called where `train.is_scored`."""


class NullObserver:
    """An observer that does nothing."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Ignore the means."""

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        """Ignore the step."""

    def preview(self, step: int, network: nn.Module, ema: nn.Module) -> None:
        """Draw nothing."""

    def validate(self, step: int, network: nn.Module, ema: nn.Module) -> dict[str, float]:
        """Measure nothing."""
        return {}

    def evaluate(self, step: int, ema: nn.Module) -> None:
        """Score nothing."""


@dataclass
class TrainState(Resumable):
    """A training after `step` steps: the network as it is, and its average, which becomes the result.

    `averages` are further ones, by the plan's widths, beside which nothing changes. With `shards` all of them
    are this process's shards, and so are the optimiser's moments.
    """

    plan: TrainPlan
    network: nn.Module
    ema: nn.Module
    optimizer: torch.optim.AdamW
    timesteps: UniformSampler
    averages: nn.ModuleList = field(default_factory=nn.ModuleList)
    shards: Shards | None = None

    def parts(self) -> dict[str, StatePart]:
        """Weights, EMA, optimiser moments, what the timestep sampler learned, and further averages."""
        return {
            "network": ModuleState(self.network),
            "ema": ModuleState(self.ema),
            "optimizer": OptimizerState(self.optimizer),
            "timesteps": self.timesteps,
            "averages": ModuleState(self.averages),
        }

    def restore(self, saved: SavedState) -> None:
        """As any; averages that only the saved one tracks are left out."""
        if not self.plan.train.sigma_rels:
            saved = saved._replace(tensors=without_prefix(saved.tensors, "averages."))
        super().restore(self.shards.own(self, saved) if self.shards else saved)


def new_state(
    plan: TrainPlan, device: torch.device, starts: Path = STARTS, group: ProcessGroup | None = None
) -> TrainState:
    """Step 0: weights drawn from the training's seed, or those of the plan's start, a file in `starts`.

    In shards where the plan wants them and `group` has several processes: of these weights alone, before all
    else is made of them, a process ever has the whole.
    """
    train, objective = plan.train, build_objective(plan)
    with translate_oom(train.PREFIX):
        with torch.random.fork_rng(devices=[]):  # the initialisers know the global generator only
            torch.manual_seed(counter_generator(objective.purposes.weights, train.seed).initial_seed())
            network = objective.network(plan.network)
        groups = init_network(network, plan.init_from, plan.network, plan.data.classes, starts)
        keep_freed_memory(device.type)
        network.train()
        shards = None
        if group and is_sharded(train, group):
            shards, network, groups = shard_network(network, groups, group)
        else:
            network.to(device)
            network.to(memory_format=memory_layout(plan.precision, device))  # type: ignore[call-overload]
        optimizer = make_optimizer(train, network, groups)
        timesteps = objective.timesteps(build_process(plan.process))
        averages = new_profiles(network, train.sigma_rels)
        ema = ema_copy(network)
        return TrainState(plan, network, ema, optimizer, timesteps, averages, shards, code=list(plan.code))


def _rate(plan: TrainPlan, step: int) -> float:
    return learning_rate(plan.train.lr, step, plan.train.steps)


def train_step(state: TrainState, gradients: GradientAccumulator, batch: Batch) -> dict[str, Tensor]:
    """One optimiser step in place; returns the step's means on the device, for which nothing has waited.

    A non-finite loss or gradient changes neither weights nor moments nor EMA: the optimiser skips it by
    itself, and the means say so.
    """
    train = state.plan.train
    losses, index, weights = gradients(batch, state.step)
    norm = gradients.clip(state.network.parameters(), train.grad_clip or math.inf)
    means = {name: (value * weights).mean() for name, value in losses.items()} | {"grad_norm": norm}
    finite = torch.stack(list(means.values())).isfinite().all()  # not of what only people look at
    means |= quartile_sums(losses["loss"], index, state.plan.process.timesteps)
    if state.timesteps.learns and finite:
        state.timesteps.update(index, losses["loss"])
    for group in state.optimizer.param_groups:
        group["lr"] = group["scale"] * _rate(state.plan, state.step)
    state.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # as torch's GradScaler says it
    if norm.device.type not in IGNORES_FOUND_INF or finite:
        state.optimizer.step()
    ema_update(state.ema, state.network, warmed_decay(train.ema_decay, state.step), finite)
    update_profiles(state.averages, state.network, train.sigma_rels, state.step + 1)
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
    snapshot: Callable[[TrainState], None] = lambda state: None,
) -> None:
    """Train to the plan's last step, in place, saving every `save_every` steps and at the end.

    `snapshot` keeps the further averages where it is time. Of several processes all call this alike; the
    first one's observer, `save` and `snapshot` matter. `check_stop` runs
    between steps and raises to stop; the state is saved first, as it is when another process is lost, but
    on a GPU and in shards: there it could not be read any more, and the newest saved state stands. Diverged
    after five non-finite steps in a row, with the last finite weights saved; the first process notices it for
    all. While a state is in shards, what is given to others is a whole copy, and so it is in the end.
    """
    config, saved_at, shards = state.plan.train, state.step, state.shards
    set_tf32(config.tf32, group.device)
    whole: Callable[[], TrainState] = partial(shards.whole, state) if shards else lambda: state
    computing = shards.computing if shards else state.network
    gradients, async_metrics = GradientAccumulator(state.plan, computing, group, shards), AsyncMetrics()
    with (
        translate_oom(config.PREFIX),
        closing(_coming(state, ImageLoader(store, group.device), gradients.share)) as coming,
    ):
        while state.step < config.steps:
            try:
                check_stop()
                async_metrics.add(train_step(state, gradients, next(coming)))
                with _first_looks(group, state):
                    _take(state, async_metrics, observer, group.is_rank_zero)
            except (Interrupted, RankFailed, Diverged) as error:
                if _is_out_of_reach(error, group, shards):
                    raise  # and `over` stays unset: who watches ends this process, should it not end itself
                group.over.set()
                for means in async_metrics.arrived(everything=True):
                    state.count(means)
                if saved_at != state.step or state.step == 0:
                    save(whole())
                raise
            if config.is_snapshot(state.step):
                snapshot(whole())
            if config.is_saved(state.step):
                save(whole())
                saved_at = state.step
        if shards:
            shards.join(state)


def _is_out_of_reach(error: BaseException, group: ProcessGroup, shards: Shards | None) -> bool:
    """Whether the state cannot be read any more, since a process is lost that has or blocks a part of it.

    Who watches is told where it blocks this process.
    """
    if not isinstance(error, RankFailed):
        return False
    if group.loss_blocks:
        group.lost.set()
    return group.loss_blocks or shards is not None


def _first_looks(group: ProcessGroup, state: TrainState) -> AbstractContextManager[None]:
    """The first process's work, where the observer does more after this step than to write something down."""
    config, step = state.plan.train, state.step
    looks = config.is_validated(step) or config.is_previewed(step) or config.is_scored(step)
    return rank_zero_first(group, f"step {step}") if looks else nullcontext()


def _coming(state: TrainState, data: ImageLoader, share: slice) -> Generator[Batch, None, None]:
    """The `share` of every step's batch that is still to come."""
    plan, steps = state.plan, range(state.step, state.plan.train.steps)
    return batches(plan, state.timesteps, data, steps, share, build_objective(plan).purposes.steps)


def _take(state: TrainState, async_metrics: AsyncMetrics, observer: Observer, is_rank_zero: bool) -> None:
    """Count the means that have arrived, all of them where they are looked at, and tell the observer.

    Diverged after five non-finite steps in a row; on a GPU that is noticed a few steps later, on each at
    another one, so that the first process alone ends the training. With shards, which all must give to be
    saved, all end it where the means are looked at.
    """
    train, step, longest = state.plan.train, state.step, 0
    due = train.is_logged(step) or train.is_saved(step) or train.is_previewed(step)
    for means in async_metrics.arrived(everything=due):
        state.count(means)
        longest = max(longest, state.bad_in_a_row)
    _observe(state, observer, async_metrics.newest)
    if state.shards:
        ends = due and state.bad_in_a_row >= MAX_BAD_STEPS
    else:
        ends = is_rank_zero and longest >= MAX_BAD_STEPS
    if ends:
        raise Diverged(
            f"training stopped after {MAX_BAD_STEPS} non-finite steps in a row, at step {state.step}: "
            f"lower {train.PREFIX}train.lr, or set {train.PREFIX}train.precision: fp32; the last finite "
            "weights are saved"
        )


def thin_history(history: list[dict[str, float]], config: OptimisationConfig) -> list[dict[str, float]]:
    """The curve; without the rows that only a shorter training had, where they make it too long."""
    if len(history) <= 2 * (CURVE_ROWS + 1):  # of training's losses, and of held-out ones
        return history
    steps = ((int(row["step"]), row) for row in history)
    return [row for step, row in steps if config.is_in_curve(step) or config.is_validated(step)]


def _observe(state: TrainState, observer: Observer, means: dict[str, float]) -> None:
    """Tell the observer what it is time for: the window's means, the newest, validation losses, pictures."""
    config = state.plan.train
    if config.is_logged(state.step):
        values = with_quartile_means(state.take_means())
        values |= {"lr": _rate(state.plan, state.step - 1), "skipped_steps": float(state.skipped)}
        if config.is_in_curve(state.step):
            state.history.append({"step": state.step, **values})
            state.history = thin_history(state.history, config)
        with observer_guard(f"metrics of step {state.step:,}"):
            observer.metrics(state.step, values)
    with observer_guard("live line"):
        observer.progress(state.step, config.steps, means)
    network, ema = state.network, state.ema
    looks = config.is_validated(state.step), config.is_previewed(state.step), config.is_scored(state.step)
    if state.shards and any(looks):
        network, ema = state.shards.networks(state)
    if config.is_validated(state.step):
        with observer_guard(f"validation loss of step {state.step:,}"):
            losses = observer.validate(state.step, network, ema)
            validation_loss.add_to_history(state.history, state.step, losses)
    if config.is_previewed(state.step):
        with observer_guard(f"preview of step {state.step:,}"):
            observer.preview(state.step, network, ema)
    if config.is_scored(state.step):
        with observer_guard(f"score of step {state.step:,}"):
            observer.evaluate(state.step, ema)
