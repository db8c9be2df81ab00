"""This library against its peers, the same network and batch: `python -m benchmarks.library`.

Each figure is the median of several runs in turn, every run in a process of its own. `--small` only tries
whether it runs; `--shape S` takes one shape; `--rounds N` sets the runs. With OMP_NUM_THREADS=1 the time of
the processor counts instead of the wall time, which holds on a machine that has other work too.

| contender, with its default settings | what runs |
| --- | --- |
| auto | this library with `precision: auto` and `compile: auto` |
| fp32 | this library in float32, not compiled |
| diffusers | UNet2DModel of the very same shape (what `diffctl export diffusers` writes), DDIMPipeline |
| diffusers-bf16 | the same with autocast in training, and with weights in bfloat16 in sampling |
| ddpm-pytorch | denoising-diffusion-pytorch's Unet and GaussianDiffusion, its own blocks at this width |

| what | goal, against the best of the peers at the same network and precision |
| --- | --- |
| training and DDIM images/s with `precision: auto` | 1.1 times both |
| the same in float32, not compiled | 1.1 times both |
| peak memory | at most 1.05 times the least of a peer |
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import ROOT, SMALL, call_apart, made_by, print_goal
from benchmarks.contenders import (
    CPU,
    InBfloat16,
    ddim_pipeline,
    epsilon_loss,
    our_sample,
    random_store,
    trainer,
    unet2d,
)
from diffusion.images.pixels import to_model, to_nchw
from diffusion.images.store import ImageStore
from diffusion.model.model_file import LoadedModel
from diffusion.protocol.settings import SampleSettings
from diffusion.system.files import write_json
from diffusion.system.section import validate
from diffusion.train.batch import ImageLoader, draw_batch
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.forward_passes import ForwardPasses
from diffusion.train.initial_state import new_state
from diffusion.train.plan import TrainPlan, plan_training, resolve_precision
from diffusion.train.train_config import TrainSections
from diffusion.train.train_step import train_step

TASKS = ("train", "sample")
GOAL = 1.1  # times the best peer of the same precision
MEMORY = 1.05  # times the least of a peer, at most
STEPS = 10  # of DDIM

Results = dict[tuple[str, str], dict[str, float]]
"""(contender, task) → rate in images/s, memory in MB, parameters."""


class Shape(NamedTuple):
    """A network and a batch: `model` is params.yaml's section, images are `channels` × 32 × 32."""

    model: dict[str, Any]
    channels: int
    batch: int


S = {"channels": 32, "channel_mult": [1, 2, 2], "num_res_blocks": 1, "attention_resolutions": [8], "heads": 4}
M = {**S, "channels": 64, "channel_mult": [1, 2, 2, 2], "num_res_blocks": 2, "attention_resolutions": [16, 8]}
SHAPES = {"S": Shape(S, 1, 64), "M": Shape(M, 3, 16)}


class Contender(NamedTuple):
    """A training step of a batch, a DDIM sample of a batch, and the number of parameters."""

    train: Callable[[], object]
    sample: Callable[[], object]
    parameters: int


def ours(precision: str, shape: Shape) -> Contender:
    """Return this library's step: drawing the batch, loss, backward, clipping, AdamW, EMA."""
    plan, store = shape_plan(precision, shape)
    state = new_state(plan, CPU)
    passes = ForwardPasses(plan, state.network, state.objective, ProcessGroup(CPU))
    data = ImageLoader(store, CPU)

    def step() -> object:
        return train_step(state, passes, draw_batch(plan, state.time_sampler, data, state.step))

    sample = our_sample(LoadedModel(state.ema, plan), SampleSettings(steps=STEPS), shape.batch, CPU)
    return Contender(step, sample, count(state.network))


def shape_plan(precision: str, shape: Shape) -> tuple[TrainPlan, ImageStore]:
    """Return our plan with the peers' settings (ε, L_simple, fixed variance), and random images."""
    values = {
        "data": {"name": "digits"},
        "model": {**shape.model, "class_cond": False},
        "process": {"schedule": "linear", "variance": "small", "loss": "simple"},
        "train": {"steps": 1000, "batch_size": shape.batch, "lr": 1e-4, "precision": precision},
    }
    store = random_store("digits", 256, 32, shape.channels)
    return plan_training(validate(TrainSections, values, "benchmark"), store.meta, CPU), store


def diffusers(shape: Shape, *, bf16: bool = False) -> Contender:
    """Return the step of diffusers' training examples, and its DDIMPipeline, in float32 or bf16."""
    plan, store = shape_plan("fp32", shape)
    network = unet2d(plan.network)
    images = to_model(to_nchw(store.images[: shape.batch]))
    pipeline = ddim_pipeline(network)

    if bf16:
        pipeline.unet = InBfloat16(unet2d(plan.network).eval(), compiled=False)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return epsilon_loss(network, pipeline.scheduler, images)

    def sample() -> object:
        return pipeline(batch_size=shape.batch, num_inference_steps=STEPS, output_type="np")

    return Contender(trainer(network, loss), sample, count(network))


def ddpm_pytorch(shape: Shape) -> Contender:
    """Return GaussianDiffusion, whose call is a batch's loss; `sample` is DDIM for fewer steps."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    model, images = shape.model, torch.rand(shape.batch, shape.channels, 32, 32)
    network = Unet(dim=model["channels"], dim_mults=tuple(model["channel_mult"]), channels=shape.channels)
    diffusion = GaussianDiffusion(network, image_size=32, timesteps=1000, sampling_timesteps=STEPS)

    def sample() -> object:
        return diffusion.sample(batch_size=shape.batch)

    return Contender(trainer(network, lambda: diffusion(images)), sample, count(network))


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


PEERS: dict[str, tuple[str, Callable[[Shape], Contender]]] = {
    "diffusers": ("diffusers", diffusers),
    "diffusers-bf16": ("diffusers", partial(diffusers, bf16=True)),
    "ddpm-pytorch": ("denoising_diffusion_pytorch", ddpm_pytorch),
}
"""Name → the module that a peer needs, and what makes it."""


def measure(contender: str, name: str, task: str, seconds: float) -> str:
    torch.manual_seed(0)
    shape = SHAPES[name]
    work = PEERS[contender][1](shape) if contender in PEERS else ours(contender, shape)
    values = {
        "rate": shape.batch / median_seconds(getattr(work, task), seconds),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "parameters": work.parameters,
    }
    return json.dumps(values)


def median_seconds(step: Callable[[], object], seconds: float) -> float:
    """Return the median of at least two calls and `seconds`, after a first call that is not counted."""
    clock = time.process_time if os.environ.get("OMP_NUM_THREADS") == "1" else time.perf_counter
    step()
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        began = clock()
        step()
        times.append(clock() - began)
    return statistics.median(times)


def compare(name: str, rounds: int, seconds: float) -> Results:
    """Return medians over the rounds, the contenders in turn."""
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    contenders = ["auto", "fp32", *(peer for peer, (module, _) in PEERS.items() if find_spec(module))]
    for turn in range(rounds):
        for task in TASKS:
            for contender in contenders:
                call = f"measure({contender!r}, {name!r}, {task!r}, {seconds})"
                printed = call_apart(ROOT, "library", call, TQDM_DISABLE="1", PYTHONWARNINGS="ignore")
                run: dict[str, float] = json.loads(printed)
                line = f"{name} {turn + 1}/{rounds} {contender} {task}: {run['rate']:.2f} images/s"
                print(f"{line}, {run['memory']:.0f} MB", file=sys.stderr, flush=True)
                runs.setdefault((contender, task), []).append(run)
    return {
        key: {what: statistics.median(run[what] for run in of) for what in of[0]} for key, of in runs.items()
    }


def print_results(found: Results) -> None:
    print("| | parameters | training images/s | peak MB | 10 DDIM steps images/s | peak MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for contender in dict.fromkeys(key[0] for key in found):
        train, sample = found[contender, "train"], found[contender, "sample"]
        rates = f"{train['rate']:.1f} | {train['memory']:.0f} | {sample['rate']:.2f} | {sample['memory']:.0f}"
        print(f"| {contender} | {train['parameters'] / 1e6:.2f} M | {rates} |")
    size = found["auto", "train"]["parameters"]
    sizes = {peer: found[peer, "train"]["parameters"] for peer in PEERS if (peer, "train") in found}
    peers = [peer for peer, other in sizes.items() if 0.9 < other / size < 1.1]  # others are only shown
    for contender, task in product(("auto", "fp32"), TASKS) if peers else ():
        equal = [peer for peer in peers if contender == "auto" or not peer.endswith("bf16")]
        best = max(equal, key=lambda peer: found[peer, task]["rate"])
        ratio = found[contender, task]["rate"] / found[best, task]["rate"]
        print_goal(f"{contender} {task}", f"{ratio:.2f} times {best}", str(GOAL), ratio >= GOAL)
    for task in TASKS if peers else ():
        ratio = found["auto", task]["memory"] / min(found[peer, task]["memory"] for peer in peers)
        print_goal(
            f"auto {task}", f"{ratio:.2f} times the least memory of a peer", str(MEMORY), ratio <= MEMORY
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.library", description=__doc__)
    parser.add_argument("--shape", choices=[*SHAPES], help="this shape alone")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, in turn")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures, such as docs/speed.json")
    parser.add_argument(SMALL, action="store_true", help="only try whether it runs")
    options = parser.parse_known_args()[0]
    rounds, seconds = (1, 0.0) if options.small else (options.rounds, 2.0)
    installed = filter(find_spec, dict.fromkeys(module for module, _ in PEERS.values()))
    versions = {name: version(name) for name in ("torch", *installed)}
    print(", ".join(f"{name} {found}" for name, found in versions.items()))
    shapes = {}
    for name in [options.shape] if options.shape else ["S"] if options.small else SHAPES:
        print(f"\n{name}: `precision: auto` is {resolve_precision('auto', CPU)}", flush=True)
        found = compare(name, rounds, seconds)
        print_results(found)
        shapes[name] = {f"{contender} {task}": values for (contender, task), values in found.items()}
    if options.out:
        write_json(
            options.out,
            {**made_by(torch.get_num_threads()), "versions": versions, "rounds": rounds, "shapes": shapes},
        )


if __name__ == "__main__":
    main()
