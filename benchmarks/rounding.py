"""What the two exact convolutions give a training in bf16: `python -m benchmarks.rounding [steps] [seeds]`.

The digits' profile is trained in bf16 with the first and the last convolution in float32, as it is, and with
these rounded like the others, and in float32; of each seed in turn. Of the average of the weights: the loss
over the held-out images by quarter of the process, and the mean squared error of ε at single times; both as
the network is trained, and with the two convolutions exact. Beside them stands the processor time.

| what | promise |
| --- | --- |
| held-out loss, error of ε and time | none: they are told |
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

from diffusion.config import load
from diffusion.data.prepare import prepare
from diffusion.images.pixels import to_model, to_nchw
from diffusion.images.store import ImageStore, open_store
from diffusion.model.exact_conv import ExactConv2d
from diffusion.model.precision import autocast
from diffusion.process.condition import Condition
from diffusion.process.denoiser import NetworkDenoiser
from diffusion.process.registry import build_process
from diffusion.train.distributed import ProcessGroup
from diffusion.train.heldout import HeldOut
from diffusion.train.identity import TrainPlan, plan_training
from diffusion.train.loop import Silent, TrainState, new_state, train

CPU = torch.device("cpu")
PROFILE = Path(__file__).parent.parent / "profiles" / "digits.yaml"
STEPS, SEEDS = 1200, 3
LONG = True
HELD_OUT = 500
TIMES = (0, 10, 100, 500)
LOSSES = ("loss", "loss_q0", "loss_q1", "loss_q2", "loss_q3")
WAYS = {"both exact": ("bf16", True), "all rounded": ("bf16", False), "float32": ("fp32", True)}


@contextmanager
def convolutions(*, exact: bool) -> Iterator[None]:
    """The first and the last convolution as they are, or rounded like the others."""
    if exact:
        yield
        return
    with mock.patch.object(ExactConv2d, "forward", nn.Conv2d.forward):
        yield


def planned(store: ImageStore, steps: int, seed: int, precision: str) -> TrainPlan:
    """The profile's training, so long and in this precision."""
    config = load(PROFILE)
    course = config.train.lr.model_copy(update={"warmup": min(config.train.lr.warmup, steps // 10)})
    changes = {"steps": steps, "lr": course, "seed": seed, "precision": precision}
    section = config.train.model_copy(update={**changes, "heldout_images": HELD_OUT, "heldout_every": None})
    return plan_training(config.model_copy(update={"train": section}), store.meta, CPU)


def trained(plan: TrainPlan, store: ImageStore) -> tuple[TrainState, float]:
    """The plan's training, and the processor seconds that it took."""
    state = new_state(plan, CPU)
    began = time.process_time()
    train(state, store, ProcessGroup(CPU), Silent(), lambda state: None, lambda: None)
    return state, time.process_time() - began


@torch.no_grad()
def errors_of_eps(state: TrainState, test: ImageStore) -> list[float]:
    """The mean squared error of the average's ε over held-out images at each of TIMES."""
    assert test.labels is not None, "the digits have labels"
    process = build_process(state.plan.process)
    denoiser = NetworkDenoiser(autocast(state.ema.eval(), state.plan.precision), process)
    x_0 = to_model(to_nchw(np.asarray(test.images[:HELD_OUT])))
    condition = Condition(len(x_0), torch.from_numpy(test.labels[:HELD_OUT]))
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    errors = []
    for t in TIMES:
        times = torch.full((len(x_0),), t)
        said = denoiser(process.q_sample(x_0, times, noise), times, condition)
        errors.append(float((said.eps - noise).square().mean()))
    return errors


def measured(state: TrainState, test: ImageStore) -> list[float]:
    """The held-out losses of the average, then its errors of ε."""
    losses = HeldOut(state.plan, test).losses(state.network, state.ema)
    return [*(losses[name] for name in LOSSES), *errors_of_eps(state, test)]


def told(name: str, rows: list[list[float]]) -> None:
    """Print the means over seeds, and their standard deviations where there are several."""
    columns = list(zip(*rows, strict=True))
    spread = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in columns]
    parts = [f"{statistics.mean(column):.4f}±{std:.4f}" for column, std in zip(columns, spread, strict=True)]
    print(f"{name:<32} {'  '.join(parts)}", flush=True)


def main(steps: int = STEPS, seeds: int = SEEDS) -> None:
    """Train each way with each seed, in turn, and print what came of it."""
    found: dict[str, list[list[float]]] = {}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        prepare(load(PROFILE).data, Path(name))
        store, test = open_store(Path(name) / "train"), open_store(Path(name) / "test")
        for seed in range(seeds):
            for way, (precision, exact) in WAYS.items():
                with convolutions(exact=exact):
                    state, took = trained(planned(store, steps, seed, precision), store)
                    found.setdefault(way, []).append(measured(state, test))
                seconds[way].append(took)
                if not exact:
                    found.setdefault(f"{way}, exact afterwards", []).append(measured(state, test))
                print(f"seed {seed}, {way}: {took:.0f} s of a processor, {found[way][-1]}", flush=True)
    print(f"{'':<32} {'  '.join([*LOSSES, *(f'ε at {t}' for t in TIMES)])}")
    for way, rows in found.items():
        told(way, rows)
    for way, times in seconds.items():
        print(f"{way:<32} {1000 * min(times) / steps:.1f} ms of a processor a step, the least of {seeds}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
