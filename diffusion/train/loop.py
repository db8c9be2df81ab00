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
from diffusion.train import heldout
from diffusion.train.async_metrics import AsyncMetrics
from diffusion.train.averages import new_averages, update_averages
from diffusion.train.batch import Batch, batches
from diffusion.train.config import CURVE_ROWS, OptimisationConfig
from diffusion.train.course import learning_rate
from diffusion.train.distributed import ProcessGroup, RankLost
from diffusion.train.ema import ema_copy, ema_update, warmed_decay
from diffusion.train.first_alone import first_alone
from diffusion.train.gradients import GradientAccumulator
from diffusion.train.identity import TrainPlan, build_objective
from diffusion.train.lazy_tensors import without
from diffusion.train.loader import Batches
from diffusion.train.loss_by_timestep import quartile_sums, with_quartile_means
from diffusion.train.memory import shortage_told
from diffusion.train.optimizers import make_optimizer
from diffusion.train.precision import set_tf32
from diffusion.train.sharding import Shards, cut, is_sharded
from diffusion.train.start import begin
from diffusion.train.state import ModuleState, OptimizerState, Part, Resumable
from diffusion.train.state_file import SavedState
from diffusion.train.watching import only_watching

MAX_BAD_STEPS = 5  # non-finite steps in a row that end a training
BLIND = ("mps",)  # kinds of device on which the fused optimiser took no notice of found_inf (pytorch#186360)


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

    def hold_out(self, step: int, network: nn.Module, ema: nn.Module) -> dict[str, float]:
        """Called where `train.is_held_out`; returns held-out losses for the curve, or none."""

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

    def hold_out(self, step: int, network: nn.Module, ema: nn.Module) -> dict[str, float]:
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

    def parts(self) -> dict[str, Part]:
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
        if not self.plan.train.widths:
            saved = saved._replace(tensors=without(saved.tensors, "averages."))
        super().restore(self.shards.own(self, saved) if self.shards else saved)


def new_state(
    plan: TrainPlan, device: torch.device, starts: Path = STARTS, group: ProcessGroup | None = None
) -> TrainState:
    """Step 0: weights drawn from the training's seed, or those of the plan's start, a file in `starts`.

    In shards where the plan wants them and `group` has several processes: of these weights alone, before all
    else is made of them, a process ever has the whole.
    """
    train, objective = plan.train, build_objective(plan)
    with shortage_told(train.PREFIX):
        with torch.random.fork_rng(devices=[]):  # the initialisers know the global generator only
            torch.manual_seed(counter_generator(objective.purposes.weights, train.seed).initial_seed())
            network = objective.network(plan.network)
        groups = begin(network, plan.start, plan.network, plan.data.classes, starts)
        keep_freed_memory(device.type)
        network.train()
        shards = None
        if group and is_sharded(train, group):
            shards, network, groups = cut(network, groups, group)
        else:
            network.to(device)
            network.to(memory_format=memory_layout(plan.precision, device))  # type: ignore[call-overload]
        optimizer = make_optimizer(train, network, groups)
        timesteps = objective.timesteps(build_process(plan.process))
        averages = new_averages(network, train.widths)
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
    if norm.device.type not in BLIND or finite:
        state.optimizer.step()
    ema_update(state.ema, state.network, warmed_decay(train.ema_decay, state.step), finite)
    update_averages(state.averages, state.network, train.widths, state.step + 1)
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
        shortage_told(config.PREFIX),
        closing(_coming(state, Batches(store, group.device), gradients.share)) as coming,
    ):
        while state.step < config.steps:
            try:
                check_stop()
                async_metrics.add(train_step(state, gradients, next(coming)))
                with _first_looks(group, state):
                    _take(state, async_metrics, observer, group.is_first)
            except (Interrupted, RankLost, Diverged) as error:
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
    if not isinstance(error, RankLost):
        return False
    if group.loss_blocks:
        group.lost.set()
    return group.loss_blocks or shards is not None


def _first_looks(group: ProcessGroup, state: TrainState) -> AbstractContextManager[None]:
    """The first process's work, where the observer does more after this step than to write something down."""
    config, step = state.plan.train, state.step
    looks = config.is_held_out(step) or config.is_previewed(step) or config.is_scored(step)
    return first_alone(group, f"step {step}") if looks else nullcontext()


def _coming(state: TrainState, data: Batches, share: slice) -> Generator[Batch, None, None]:
    """The `share` of every step's batch that is still to come."""
    plan, steps = state.plan, range(state.step, state.plan.train.steps)
    return batches(plan, state.timesteps, data, steps, share, build_objective(plan).purposes.steps)


def _take(state: TrainState, async_metrics: AsyncMetrics, observer: Observer, is_first: bool) -> None:
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
        ends = is_first and longest >= MAX_BAD_STEPS
    if ends:
        raise Diverged(
            f"training stopped after {MAX_BAD_STEPS} non-finite steps in a row, at step {state.step}: "
            f"lower {train.PREFIX}train.lr, or set {train.PREFIX}train.precision: fp32; the last finite "
            "weights are saved"
        )


def thinned(history: list[dict[str, float]], config: OptimisationConfig) -> list[dict[str, float]]:
    """The curve; without the rows that only a shorter training had, where they make it too long."""
    if len(history) <= 2 * (CURVE_ROWS + 1):  # of training's losses, and of held-out ones
        return history
    steps = ((int(row["step"]), row) for row in history)
    return [row for step, row in steps if config.is_charted(step) or config.is_held_out(step)]


def _observe(state: TrainState, observer: Observer, means: dict[str, float]) -> None:
    """Tell the observer what it is time for: the window's means, the newest, held-out losses, pictures."""
    config = state.plan.train
    if config.is_logged(state.step):
        values = with_quartile_means(state.take_means())
        values |= {"lr": _rate(state.plan, state.step - 1), "skipped_steps": float(state.skipped)}
        if config.is_charted(state.step):
            state.history.append({"step": state.step, **values})
            state.history = thinned(state.history, config)
        with only_watching(f"metrics of step {state.step:,}"):
            observer.metrics(state.step, values)
    with only_watching("live line"):
        observer.progress(state.step, config.steps, means)
    network, ema = state.network, state.ema
    looks = config.is_held_out(state.step), config.is_previewed(state.step), config.is_scored(state.step)
    if state.shards and any(looks):
        network, ema = state.shards.networks(state)
    if config.is_held_out(state.step):
        with only_watching(f"held-out loss of step {state.step:,}"):
            losses = observer.hold_out(state.step, network, ema)
            heldout.note(state.history, state.step, losses)
    if config.is_previewed(state.step):
        with only_watching(f"preview of step {state.step:,}"):
            observer.preview(state.step, network, ema)
    if config.is_scored(state.step):
        with only_watching(f"score of step {state.step:,}"):
            observer.evaluate(state.step, ema)
