"""Training as a function of one counter: step k's batch, timesteps and noise come from (seed, k) alone.

So a killed training goes on from its newest state bit for bit, and needs nothing but the counter, the
weights, their average and the optimiser's moments.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from diffusion.checkpoint import Artefact
from diffusion.data.store import ImageStore
from diffusion.ema import ema_copy, ema_update, warmed_decay
from diffusion.errors import DiffctlError
from diffusion.gaussian import Network, training_losses
from diffusion.images import to_model, to_nchw
from diffusion.precision import autocast
from diffusion.random import generator
from diffusion.schedule import Schedule
from diffusion.state import SavedState
from diffusion.timesteps import LossAwareSampler, UniformSampler
from diffusion.unet import UNet

MAX_BAD_STEPS = 5  # non-finite steps in a row that end a training


class Observer(Protocol):
    """What watches a training. Nothing that it does changes the result."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Means since the last call, after `step` steps."""

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        """Called after every step with the newest means."""

    def preview(self, step: int, network: UNet, ema: UNet) -> None:
        """Called every `preview_every` steps."""


@dataclass
class Batch:
    """All that step k draws: images in [−1, 1], labels with some dropped, timesteps, weights and noise."""

    x_0: Tensor
    labels: Tensor | None
    index: Tensor
    weights: Tensor
    noise: Tensor

    def split(self, size: int | None) -> list["Batch"]:
        """The batch in parts of at most `size` images, in order; itself when `size` is None."""
        if size is None:
            return [self]
        parts = []
        for start in range(0, len(self.index), size):
            rows = slice(start, start + size)
            labels = None if self.labels is None else self.labels[rows]
            tensors = (self.x_0[rows], labels, self.index[rows], self.weights[rows], self.noise[rows])
            parts.append(Batch(*tensors))
        return parts


@dataclass
class TrainState:
    """A training after `step` steps; `values` and `tensors` are all that a resume needs."""

    artefact: Artefact
    network: UNet
    ema: UNet
    optimizer: torch.optim.AdamW
    timesteps: UniformSampler
    step: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    window: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, EMA, optimiser moments and what the timestep sampler learned, by name."""
        named = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        named |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        return named | {f"timesteps.{name}": value for name, value in self.timesteps.state_dict().items()}

    def values(self) -> dict[str, Any]:
        """The counters and the curve so far."""
        names = ("step", "skipped", "bad_in_a_row", "window", "history")
        return {name: getattr(self, name) for name in names}

    def restore(self, saved: SavedState) -> None:
        """Become the saved state, exactly."""
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "ema": {}, "optimizer": {}, "timesteps": {}}
        for name, tensor in saved.tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = tensor
        self.network.load_state_dict(parts["network"])
        self.ema.load_state_dict(parts["ema"])
        self.timesteps.load_state_dict(parts["timesteps"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, moment = name.split(".")
            moments.setdefault(int(index), {})[moment] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        for name, value in saved.values.items():
            setattr(self, name, value)


def new_state(artefact: Artefact, device: torch.device) -> TrainState:
    """Step 0: weights drawn from the training's seed."""
    train = artefact.train
    with torch.random.fork_rng(devices=[]):  # the initialisers know the global generator only
        torch.manual_seed(generator("weights", train.seed).initial_seed())
        network = UNet(artefact.network)
    network = network.to(device).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True
    )
    samplers = {"uniform": UniformSampler, "loss-aware": LossAwareSampler}
    timesteps = samplers[artefact.diffusion.t_sampler](artefact.diffusion.timesteps)
    return TrainState(artefact, network, ema_copy(network), optimizer, timesteps)


def draw_batch(state: TrainState, store: ImageStore, device: torch.device) -> Batch:
    """Everything random of the state's next step, from (seed, step) alone."""
    artefact, train = state.artefact, state.artefact.train
    source = generator("train", train.seed, state.step)
    rows = torch.randint(len(store), (train.batch_size,), generator=source)
    flips = torch.rand(train.batch_size, generator=source) < 0.5
    dropped = torch.rand(train.batch_size, generator=source) < train.p_uncond
    index, weights = state.timesteps.draw(train.batch_size, source)
    images = to_nchw(store.images[rows.numpy()])
    noise = torch.randn(images.shape, generator=source)
    if artefact.data.flip:
        images = torch.where(flips[:, None, None, None], images.flip(3), images)
    labels = None
    if artefact.network.num_classes:
        assert store.labels is not None, "resolve() refuses a conditional model without labels"
        labels = torch.from_numpy(store.labels[rows.numpy()])
        labels = torch.where(dropped, artefact.network.num_classes, labels).to(device)
    return Batch(to_model(images.to(device)), labels, index, weights.to(device), noise.to(device))


def learning_rate(artefact: Artefact, step: int) -> float:
    """The rate of step k: a linear warm-up, then constant or down a half cosine that ends at 0."""
    train = artefact.train
    if step < train.warmup:
        return train.lr * (step + 1) / train.warmup
    if train.lr_decay == "none":
        return train.lr
    return train.lr * (1 + math.cos(math.pi * (step - train.warmup) / (train.steps - train.warmup))) / 2


def train_step(state: TrainState, schedule: Schedule, batch: Batch) -> dict[str, float]:
    """One optimiser step in place; returns the step's means.

    A non-finite loss or gradient changes no weight: it is counted in `skipped` and `bad_in_a_row`.
    """
    artefact = state.artefact
    if artefact.network.dropout:
        torch.manual_seed(generator("dropout", artefact.train.seed, state.step).initial_seed())
    network = autocast(state.network, artefact.precision)
    parts = [
        _backward(network, schedule, artefact, part, len(batch.index))
        for part in batch.split(artefact.train.microbatch)
    ]
    losses = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), artefact.train.grad_clip)
    means = {name: float((value * batch.weights).mean()) for name, value in losses.items()}
    means["grad_norm"] = float(norm)
    if all(map(math.isfinite, means.values())):
        state.timesteps.update(batch.index, losses["loss"])
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(artefact, state.step)
        state.optimizer.step()
        ema_update(state.ema, state.network, warmed_decay(artefact.train.ema_decay, state.step))
        state.bad_in_a_row = 0
    else:
        state.skipped += 1
        state.bad_in_a_row += 1
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return means


def _backward(
    network: Network, schedule: Schedule, artefact: Artefact, part: Batch, batch_size: int
) -> dict[str, Tensor]:
    """Add the part's share of the batch's gradient; returns its per-image losses, each (B,)."""
    losses = training_losses(
        network, schedule, artefact.diffusion, part.x_0, part.index, part.noise, part.labels
    )
    ((losses["loss"] * part.weights).sum() / batch_size).backward()  # type: ignore[no-untyped-call]
    return {name: value.detach() for name, value in losses.items()}


def train(
    state: TrainState,
    store: ImageStore,
    device: torch.device,
    observer: Observer,
    save: Callable[[TrainState], None],
    check_stop: Callable[[], None],
) -> None:
    """Train to the artefact's last step, in place, saving every `save_every` steps and at the end.

    `check_stop` runs between steps and raises to stop; the state is saved first. DiffctlError after five
    non-finite steps in a row, with the last finite weights saved.
    """
    config = state.artefact.train
    schedule = Schedule.named(state.artefact.diffusion.schedule, state.artefact.diffusion.timesteps)
    saved_at = state.step
    while state.step < config.steps:
        try:
            check_stop()
        except DiffctlError:
            if saved_at != state.step or state.step == 0:
                save(state)
            raise
        means = train_step(state, schedule, draw_batch(state, store, device))
        _observe(state, observer, means)
        if state.bad_in_a_row >= MAX_BAD_STEPS:
            save(state)
            raise DiffctlError(
                f"training stopped after {MAX_BAD_STEPS} non-finite steps in a row, at step {state.step}: "
                "lower train.lr, or set train.precision: fp32; the last finite weights are saved"
            )
        if state.step % config.save_every == 0 or state.step == config.steps:
            save(state)
            saved_at = state.step


def _observe(state: TrainState, observer: Observer, means: dict[str, float]) -> None:
    """Add to the window of means, and tell the observer when it is its time."""
    config = state.artefact.train
    if state.bad_in_a_row == 0:
        for name, value in {**means, "count": 1.0}.items():
            state.window[name] = state.window.get(name, 0.0) + value
    if state.step % config.log_every == 0 or state.step == config.steps:
        count = state.window.pop("count", 0.0)
        values = {name: total / count for name, total in state.window.items()} if count else {}
        values |= {"lr": learning_rate(state.artefact, state.step - 1), "skipped_steps": float(state.skipped)}
        state.window = {}
        state.history.append({"step": state.step, **values})
        observer.metrics(state.step, values)
    observer.progress(state.step, config.steps, means)
    if state.step % config.preview_every == 0 or state.step == config.steps:
        observer.preview(state.step, state.network, state.ema)
