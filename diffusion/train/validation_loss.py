"""The loss over images that the training never sees, at fixed noise: whether it learns more than its images.

Which images, t and noise stands in no seed, so that trainings of one data set are compared by the same draws;
nothing is drawn from a training's own generators, and no number of a training depends on this.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diffusion.images.pixels import to_model, to_nchw
from diffusion.images.store import ImageStore
from diffusion.model.precision import autocast
from diffusion.process.noise import counter_generator
from diffusion.process.process_registry import build_process
from diffusion.system.errors import DiffctlWarning
from diffusion.train.batch import Batch
from diffusion.train.loss_by_timestep import NAMES as QUARTERS
from diffusion.train.loss_by_timestep import quartile_sums, with_quartile_means
from diffusion.train.plan import TrainPlan, build_objective

AT_ONCE = 64  # images at most
PREFIX = "val_"  # before the names of the losses in the curve
LOSS = f"{PREFIX}loss"
RAW = "raw_"  # before the names of the losses of the weights themselves; the others are of their average
OF_EACH = ("loss", "accuracy", "mse", "vlb", *QUARTERS)
PARTS = (*OF_EACH, *(f"{RAW}{part}" for part in OF_EACH))
RISE, TIMES = 1.02, 3  # the losses that many times in a row above the least by this factor have risen

Values = dict[str, float]


class ValidationLoss:
    """The losses over `train.val_images` of a store's images, or all where it has fewer.

    Place i of n has an image of its own, a t from the i-th n-th of the process, and noise by i.
    """

    def __init__(self, plan: TrainPlan, store: ImageStore) -> None:
        self._plan, self._store = plan, store
        self._objective, self._process = build_objective(plan), build_process(plan.process)
        order = torch.randperm(len(store), generator=counter_generator("held-out images"))
        self._rows = order[: plan.train.val_images]

    @torch.no_grad()
    def losses(self, network: nn.Module, ema: nn.Module) -> Values:
        """Means of each loss and, of what is trained by, each quarter of T: the EMA's, then the raw weights'.

        The networks are left as they were.
        """
        device = next(network.parameters()).device
        wanted = self._plan.train.microbatch
        size = min(wanted, AT_ONCE) if isinstance(wanted, int) else AT_ONCE
        found: Values = {}
        for prefix, weights in (("", ema), (RAW, network)):
            with _evaluating(weights):
                forward = autocast(weights, self._plan.precision)
                parts = [
                    (self._objective.losses(forward, self._process, batch), batch.index)
                    for batch in self._batches(size, device)
                ]
            losses = {name: torch.cat([part[name] for part, _ in parts]).cpu() for name in parts[0][0]}
            index = torch.cat([index for _, index in parts]).cpu()
            found |= {f"{prefix}{name}": value for name, value in self._means(losses, index).items()}
        return found

    def _means(self, losses: dict[str, Tensor], index: Tensor) -> Values:
        sums = quartile_sums(losses["loss"], index, self._process.timesteps)
        means = {name: value.double().mean() for name, value in losses.items()}
        return with_quartile_means({name: float(value) for name, value in {**means, **sums}.items()})

    def _batches(self, size: int, device: torch.device) -> Iterator[Batch]:
        count, spec = len(self._rows), self._plan.network
        for start in range(0, count, size):
            places = range(start, min(start + size, count))
            rows = self._rows[places.start : places.stop].numpy()
            images = to_model(to_nchw(self._store.images[rows]))
            noise, uniforms = torch.empty_like(images), torch.empty(len(places), dtype=torch.float64)
            for row, place in enumerate(places):
                source = counter_generator("held-out draws", place)
                uniforms[row : row + 1].uniform_(generator=source)
                noise[row].normal_(generator=source)
            index = ((torch.tensor(places) + uniforms) / count * self._process.timesteps).long()
            labels = None
            if spec.num_classes:
                assert self._store.labels is not None, "the splits of a data set have labels alike"
                labels = torch.from_numpy(self._store.labels[rows]).to(device)
            weights = torch.ones(len(places), device=device)
            yield Batch(images.to(device), labels, index.to(device), weights, noise.to(device))


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def add_to_history(history: list[Values], step: int, losses: Values) -> None:
    """Join a step's losses to the curve; DiffctlWarning where the average's begins to rise."""
    if not losses:
        return
    if not (history and history[-1]["step"] == step):
        history.append({"step": step})
    history[-1] |= {f"{PREFIX}{name}": value for name, value in losses.items()}
    measured = [(row[LOSS], int(row["step"])) for row in history if LOSS in row]
    if starts_rising([loss for loss, _ in measured]):
        least, at = min(measured)
        warnings.warn(
            f"the validation loss has risen from {least:.4g} after step {at:,} to {losses['loss']:.4g} after "
            f"step {step:,}: the model begins to know its images by heart; fewer steps, more images, "
            "data.flip or model.dropout help",
            DiffctlWarning,
            stacklevel=2,
        )


def starts_rising(losses: Sequence[float]) -> bool:
    """Whether the last three are each over the least before by 2%, and one loss ago they were not."""
    return _has_risen(losses) and not _has_risen(losses[:-1])


def _has_risen(losses: Sequence[float]) -> bool:
    before, last = losses[:-TIMES], losses[-TIMES:]
    return bool(before) and min(last) > RISE * min(before)
