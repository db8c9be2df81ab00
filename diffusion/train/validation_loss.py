"""The validation loss over images that the training never uses, with fixed noise, and the loss curve.

Images, t and noise are fixed, independent of the seed, so that trainings on one data set are compared on the
same draws. It draws nothing from a training's generators and changes no number of a training.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.images.pixels import to_model, to_nchw
from diffusion.images.store import ImageStore
from diffusion.model.precision import autocast
from diffusion.process.noise import counter_generator
from diffusion.process.noise_process import build_process
from diffusion.process.objective import Batch, FeatureHooks, TrainedNetwork
from diffusion.process.time_samplers import default_time_sampler
from diffusion.system.devices import float64_device, to_device
from diffusion.system.errors import DiffctlWarning
from diffusion.system.files import write_text
from diffusion.train.batch import draw_low_res, draw_rows
from diffusion.train.plan import TrainPlan
from diffusion.train.train_config import BAND_NAMES
from diffusion.train.train_state import TrainState, band_sums, with_band_means

IN_CODE_DIGEST = False  # diffusion/code_digest.py

MAX_BATCH = 64
PREFIX = "val_"  # of the losses' names in the curve
LOSS = f"{PREFIX}loss"
RAW = "raw_"  # prefix of the losses of the weights themselves; the others are those of the EMA
NAMES = ("loss", "accuracy", "mse", "vlb", *BAND_NAMES)
PARTS = (*NAMES, *(f"{RAW}{name}" for name in NAMES))
DIGITS = {"step": 12}  # significant digits of a column in the curve; 6 for all others
LOGGED = ("step", "loss", "accuracy", "mse", "vlb", "grad_norm", "lr", "skipped_steps")
CURVE = (*LOGGED, *(f"{PREFIX}{part}" for part in PARTS))
RISE, RISING_LOSSES = 1.02, 3  # a rise: RISING_LOSSES in a row above RISE times the minimum

Losses = dict[str, float]


class ValidationLoss:
    """The losses over `train.val_images` images of a store, or all if it has fewer.

    Draw i of n has its own image, the i-th n-th of the process's default distribution for its t, and noise
    from i.

    A loss of the whole batch is computed in batches of `train.batch_size`, each with t of the whole range.
    Images of an incomplete last batch are left out. An objective that depends on the step has its last form.
    """

    def __init__(self, plan: TrainPlan, store: ImageStore) -> None:
        self._plan, self._store = plan, store
        self._process = build_process(plan.process)
        self._times = default_time_sampler(self._process)
        order = torch.randperm(len(store), generator=counter_generator("held-out images"))
        self._rows = order[: plan.train.val_images]

    @torch.no_grad()
    def losses(self, state: TrainState, network: nn.Module, ema: nn.Module) -> Losses:
        """Return mean losses, also by band of the log-SNR, of EMA and raw weights, in eval mode.

        The networks are those of the state, unsharded.
        """
        device, last = next(network.parameters()).device, self._plan.train.steps - 1
        found: Losses = {}
        for prefix, weights, objective in (("", ema, state.ema_objective), (RAW, network, state.objective)):
            hooks = FeatureHooks(weights, objective.features)
            forward = autocast(weights, self._plan.precision)
            trained = TrainedNetwork(forward, self._process, hooks.latest)
            parts: list[tuple[dict[str, Tensor], Tensor]] = [
                (objective(trained, batch, last), batch.t)
                for batch in self._batches(self._draws(objective.whole_batch), device)
            ]
            hooks.remove()
            losses = {name: torch.cat([part[name] for part, _ in parts]).cpu() for name in parts[0][0]}
            t = torch.cat([t for _, t in parts]).cpu()
            means = {name: value.double().mean() for name, value in losses.items()}
            means |= band_sums(losses["loss"], self._process.log_snr(t))
            totals = {name: float(value) for name, value in means.items()}
            found |= {f"{prefix}{name}": value for name, value in with_band_means(totals).items()}
        return found

    def _draws(self, whole_batch: bool) -> list[range]:
        """Return the draws of each batch."""
        count, train = len(self._rows), self._plan.train
        if whole_batch:
            parts = max(1, count // train.batch_size)
            return [range(first, min(count, parts * train.batch_size), parts) for first in range(parts)]
        size = min(train.microbatch, MAX_BATCH) if isinstance(train.microbatch, int) else MAX_BATCH
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def _batches(self, parts: list[range], device: torch.device) -> Iterator[Batch]:
        count, spec = sum(map(len, parts)), self._plan.network
        for draws in parts:
            rows = self._rows[list(draws)].numpy()
            images = to_model(to_nchw(self._store.images[rows]))
            (uniforms,), noise = draw_rows(("held-out draws",), draws, spec.shape, count=1)
            t = self._times.times((torch.tensor(draws) + uniforms) / count)
            labels = None
            if spec.num_classes:
                assert self._store.labels is not None, "all splits of a data set have labels, or none has"
                labels = torch.from_numpy(self._store.labels[rows]).to(device)
            weights, images = torch.ones(len(draws), device=device), images.to(device)
            low_res = draw_low_res(images, spec, ("held-out draws",), draws)
            t = to_device(t, float64_device(device))
            yield Batch(images, labels, t, weights, noise.to(device), None, *low_res)


def add_to_history(history: list[Losses], step: int, losses: Losses) -> None:
    """Add a step's finite losses to the curve; DiffctlWarning for others, and when the EMA's loss rises."""
    finite = {name: value for name, value in losses.items() if math.isfinite(value)}
    if len(finite) < len(losses):
        message = "a validation loss is NaN or infinite: it is not in the loss curve; lower the learning rate"
        warnings.warn(message, DiffctlWarning, stacklevel=2)  # Python shows an equal sentence once
    if not finite:
        return
    if not (history and history[-1]["step"] == step):
        history.append({"step": step})
    history[-1] |= {f"{PREFIX}{name}": value for name, value in finite.items()}
    measured = [(row[LOSS], int(row["step"])) for row in history if LOSS in row]
    curve = [loss for loss, _ in measured]
    if "loss" in finite and _has_risen(curve) and not _has_risen(curve[:-1]):
        least, at = min(measured)
        warnings.warn(
            f"the validation loss has risen from {least:.4g} after step {at:,} to {curve[-1]:.4g} after "
            f"step {step:,}: the model is overfitting; fewer steps, more images, data.flip or dropout "
            "help",
            DiffctlWarning,
            stacklevel=2,
        )


def _has_risen(losses: Sequence[float]) -> bool:
    """Whether the last three losses exceed the minimum before by 2%."""
    before, last = losses[:-RISING_LOSSES], losses[-RISING_LOSSES:]
    return bool(before) and min(last) > RISE * min(before)


def write_loss_curve(path: Path, history: list[dict[str, float]]) -> None:
    """Write the training's means by step as CSV, nan where one is missing.

    Columns are those of CURVE that occur, and the objective's own.
    """
    found = dict.fromkeys(name for row in history for name in row if name not in BAND_NAMES)
    names = [*(name for name in CURVE if name in found), *(name for name in found if name not in CURVE)]
    lines = [",".join(names)] + [
        ",".join(f"{row.get(name, math.nan):.{DIGITS.get(name, 6)}g}" for name in names) for row in history
    ]
    write_text(path, "\n".join(lines) + "\n")
