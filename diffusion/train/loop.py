"""The training loop: steps, log entries, observers, saves, and stops."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext

import torch
from torch import nn

from diffusion.images.store import ImageStore
from diffusion.system.errors import Interrupted, LastingError
from diffusion.train import validation_loss
from diffusion.train.batch import ImageLoader, batches
from diffusion.train.distributed.process_group import ProcessGroup, RankFailed, rank_zero_first
from diffusion.train.forward_passes import ForwardPasses
from diffusion.train.observers import AsyncMetrics, Observer, ThreadMonitor, observer_guard
from diffusion.train.optimizers.lr_schedule import learning_rate
from diffusion.train.step_memory import translate_oom
from diffusion.train.train_state import TrainState, with_band_means
from diffusion.train.train_step import train_step

MAX_BAD_STEPS = 5  # non-finite steps in a row that end a training


class Diverged(LastingError):
    """Loss or gradient was not finite for too many steps in a row."""


def train(
    state: TrainState,
    store: ImageStore | ImageLoader,
    group: ProcessGroup,
    observer: Observer,
    check_stop: Callable[[], None],
    snapshot: Callable[[TrainState, list[nn.Module]], None] = lambda state, profiles: None,
) -> None:
    """Train to the plan's last step, in place; save every `save_every` steps and at the end.

    All ranks call it alike; rank 0's `observer` and `snapshot` are used. `snapshot` keeps the EMA profiles.
    `check_stop` runs between steps and raises to stop; the state is saved first. It is also saved if
    another rank fails, except on a GPU or with shards, where it cannot be read. Raise Diverged after five
    non-finite steps in a row, with the last finite weights saved. At the end a sharded EMA is gathered.
    """
    config, saved_at, shards = state.plan.train, state.step, state.shards
    computing = shards.computing if shards else state.network
    passes = ForwardPasses(state.plan, computing, state.objective, group, shards)
    metrics = AsyncMetrics()
    data = store if isinstance(store, ImageLoader) else ImageLoader(store, group.device)
    steps = range(state.step, config.steps)
    is_monitored = group.is_rank_zero and group.device.type == "cpu"
    threads = ThreadMonitor(torch.get_num_threads() if is_monitored else 1)
    with (
        translate_oom(config.PREFIX),
        tf32(config.tf32, group.device),
        closing(passes),
        closing(batches(state.plan, state.time_sampler, data, steps, passes.share)) as remaining,
    ):
        while state.step < config.steps:
            try:
                check_stop()
                metrics.add(train_step(state, passes, next(remaining)))
                if state.step in config.snapshot_steps():  # before a save of this step
                    snapshot(state, [state.full(profile) for profile in state.ema_profiles])
                threads.count_step()
                _record(state, metrics, observer, group)
            except (Interrupted, RankFailed, Diverged) as error:
                if isinstance(error, RankFailed) and (group.loss_blocks or shards is not None):
                    raise  # `over` stays unset, so that the launcher ends this process if it hangs
                group.over.set()
                for means in metrics.arrived(everything=True):
                    state.record(means)
                if saved_at != state.step or state.step == 0:
                    observer.save(state.saved())
                raise
            if config.is_due(state.step, "save_every"):
                observer.save(state.saved())
                saved_at = state.step
    try:
        check_stop()  # the last step's score may have been interrupted
    except Interrupted:
        group.over.set()
        raise
    state.ema = state.full(state.ema)


@contextmanager
def tf32(allowed: bool, device: torch.device) -> Iterator[None]:
    """Let a GPU from Ampere on round the factors of float32 products to TF32 (10 bits) in a block, or not.

    The process samples in torch's own way after its training, as other processes do.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _record(state: TrainState, metrics: AsyncMetrics, observer: Observer, group: ProcessGroup) -> None:
    """Record the means that have arrived, all of them if they are due, and call the observer.

    Diverged after five non-finite steps in a row. On GPUs each rank notices at another step, so that rank 0
    alone ends the training. With shards, which all ranks must gather for a save, all end it when means are
    due.
    """
    train, step, longest = state.plan.train, state.step, 0
    is_due = train.is_due(step, "log_every", "save_every", "preview_every")
    for means in metrics.arrived(everything=is_due):
        state.record(means)
        longest = max(longest, state.bad_in_a_row)
    is_long = train.is_validated(step) or train.is_due(step, "preview_every", "eval_every")
    with rank_zero_first(group, f"step {step}") if is_long else nullcontext():
        _observe(state, observer, metrics.newest, is_long)
    if state.shards:
        ends = is_due and state.bad_in_a_row >= MAX_BAD_STEPS
    else:
        ends = group.is_rank_zero and longest >= MAX_BAD_STEPS
    if ends:
        other = "grad_clip" if state.plan.precision == "fp32" else "precision: fp32"
        raise Diverged(
            f"training stopped after {MAX_BAD_STEPS} non-finite steps in a row, at step {step}: "
            f"lower {train.PREFIX}train.lr, or set {train.PREFIX}train.{other}; the last finite weights are "
            "saved"
        )


def _observe(state: TrainState, observer: Observer, newest: dict[str, float], is_long: bool) -> None:
    """Call the observer's methods that are due after this step, and extend the curve."""
    config, step = state.plan.train, state.step
    if config.is_due(step, "log_every"):
        values = with_band_means(state.pop_means())
        values["lr"] = learning_rate(config.lr, step - 1, config.steps)
        values["skipped_steps"] = float(state.skipped)
        if config.is_in_curve(step):
            state.history.append({"step": step, **values})
        with observer_guard(f"metrics of step {step:,}"):
            observer.metrics(step, values)
    with observer_guard("live line"):
        observer.progress(step, config.steps, newest)
    if not is_long:
        return
    network, ema = state.full(state.network).eval(), state.full(state.ema)
    try:
        if config.is_validated(step):
            with observer_guard(f"validation loss of step {step:,}"):
                validation_loss.add_to_history(state.history, step, observer.validate(state, network, ema))
        if config.is_due(step, "preview_every"):
            with observer_guard(f"preview of step {step:,}"):
                observer.preview(step, network, ema)
        if config.is_due(step, "eval_every"):
            with observer_guard(f"score of step {step:,}"):
                observer.evaluate(step, ema)
    finally:
        network.train()
