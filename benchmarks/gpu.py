"""Training and sampling on a GPU against diffusers: `python -m benchmarks.gpu [FILE] [--minutes M]`.

For the profiles cifar10, imagenet64 and imagenet64-adm, in bf16 and compiled: images/s, share of the GPU's
measured bf16 matrix rate, peak memory. Then Fashion-MNIST is trained for seven minutes, and the distance of
2,000 of its images from real ones is computed. FILE stores the parts: the same command continues with missing
ones and prints all results with their goals. No part starts after `--minutes`, and the long training is only
the first part of a call. Without diffusers only this library is measured. `--small` runs all parts with tiny
networks, also on a CPU.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import contenders, print_goal
from diffusion.config import load
from diffusion.images.store import ImageStore
from diffusion.model.model_file import LoadedModel
from diffusion.model.precision import freeze
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec
from diffusion.protocol.settings import SampleSettings
from diffusion.system.devices import default_device, is_out_of_memory
from diffusion.system.errors import DiffctlError
from diffusion.system.files import write_json
from diffusion.train.initial_state import new_state
from diffusion.train.plan import TrainPlan
from diffusion.train.step_memory import OutOfMemory

FILE = Path("benchmarks-gpu.json")
BATCHES = {"cifar10": 128, "imagenet64": 128, "imagenet64-adm": 64}  # images a step that one GPU takes of it
ETAS = (0.0, 1.0)
RATE = "matrix rate"
TRAINING, SAMPLING = "{} | training | {}", "{} | DDIM, η = {:g} | {}"
QUALITY, DISTANCE = "fashion-mnist | distance", 200.0
FOR_QUALITY = ("PIL", "scipy", "torch_fidelity", "efficientnet_lite_pytorch")
MINUTES = 7  # of that training: three of ten are left to begin, compile, sample and score
ADM = "imagenet64-adm"
Part = Callable[[], dict[str, Any]]


class Size(NamedTuple):
    """How much is measured: training steps, `warm` ones first, calls of a sampler, and their inputs."""

    is_small: bool
    warm: int
    timed: int
    log_every: int
    images: int
    repeats: int
    ddim_steps: int
    matrix: int


WHOLE = Size(False, warm=10, timed=40, log_every=10, images=8192, repeats=5, ddim_steps=20, matrix=8192)
SMALL = Size(True, warm=1, timed=2, log_every=1, images=16, repeats=1, ddim_steps=2, matrix=128)


def parts(size: Size, device: torch.device) -> dict[str, Part]:
    by = ("ours", "diffusers") if find_spec("diffusers") else ("ours",)
    found: dict[str, Part] = {RATE: lambda: {"flop_per_s": contenders.matrix_rate(device, size.matrix)}}
    for profile in BATCHES:
        for who in by:
            found[TRAINING.format(profile, who)] = partial(training, profile, who, size, device)
        for eta, who in product(ETAS, by):
            found[SAMPLING.format(profile, eta, who)] = partial(sampling, profile, eta, who, size, device)
    if all(map(find_spec, FOR_QUALITY)):
        found[QUALITY] = partial(distance, size, device)
    return found


def distance(size: Size, device: torch.device) -> dict[str, Any]:
    """Return the distance of images of a training of some minutes, and what it was; small: of digits."""
    from benchmarks import quality  # needs more than the other parts

    profile = quality.PROFILES / "digits.yaml" if size.is_small else quality.PROFILE
    wanted = quality.Size(1, 12, 2) if size.is_small else quality.Size(60 * MINUTES)
    config = load(profile)
    with tempfile.TemporaryDirectory() as folder:
        train, test = quality.prepared(config, Path(folder))
        images, how = quality.ours(config, train, wanted, device)
        return {"distance": quality.Judge(test.images, device)(images), "how": how}


def training(profile: str, by: str, size: Size, device: torch.device) -> dict[str, Any]:
    """Return the result of a training: ours as `diffctl stage train` does it, without saves and previews."""
    plan, store = planned(profile, size, device)

    def rate() -> float:
        if by == "ours":
            seconds = contenders.step_seconds(new_state(plan, device), store, device, warm=size.warm)
            return plan.train.batch_size / seconds
        step = contenders.diffusers_step(plan, store, device, compiled=not size.is_small)
        return contenders.images_per_second(step, plan, size.warm, size.timed, device)

    return measured(rate, contenders.flop(plan.network, backward=True), device)


def sampling(profile: str, eta: float, by: str, size: Size, device: torch.device) -> dict[str, Any]:
    """Return the result of sampling a batch: ours as the stage `sample` does it for many images."""
    plan, _ = planned(profile, size, device)
    settings, fast = SampleSettings(steps=size.ddim_steps, eta=eta), not size.is_small

    def rate() -> float:
        if by == "ours":
            model = LoadedModel(freeze(UNet(plan.network).to(device)), plan)
            sample = contenders.our_sample(model, settings, plan.train.batch_size, device, fast=fast)
        else:
            sample = contenders.diffusers_sample(plan, settings, device, compiled=fast)
        return contenders.images_per_second(sample, plan, 2, size.repeats, device)

    return measured(rate, size.ddim_steps * contenders.flop(plan.network, backward=False), device)


def planned(profile: str, size: Size, device: torch.device) -> tuple[TrainPlan, ImageStore]:
    """Return the profile's training of a few steps; a small one has a tiny network."""
    batch = 2 if size.is_small else BATCHES[profile]
    steps = {"batch_size": batch, "steps": size.warm + size.timed, "log_every": size.log_every}
    fit = {"microbatch": "auto", "compile": not size.is_small}
    plan, store = contenders.profile_plan(profile, device, size.images, **steps, **fit)
    if size.is_small:
        side = plan.network.image_size
        few = {"channels": 64, "channel_mult": (1, 2), "num_res_blocks": 1}
        tiny = {**plan.network.model_dump(), **few, "attention_resolutions": (side // 2,)}
        plan = plan.model_copy(update={"network": UNetSpec(**tiny)})
    return plan, store


def measured(rate: Callable[[], float], operations: int, device: torch.device) -> dict[str, Any]:
    """Return images/s, peak memory in bytes (0 on a CPU) and operations of an image.

    A lack of memory is a result too. What an earlier part compiled is dropped first.
    """
    torch.compiler.reset()
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        value = rate()
    except (OutOfMemory, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        return {"failed": "the memory does not suffice"}
    memory = torch.cuda.max_memory_allocated(device) if is_cuda else 0
    return {"rate": value, "memory": memory, "flop": operations}


def machine(size: Size, device: torch.device) -> str:
    """Return under what name a file has the results of this machine and size."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, torch {torch.__version__}{', small' * size.is_small}"


def table(found: dict[str, dict[str, Any]]) -> str:
    peak = found.get(RATE, {}).get("flop_per_s", math.nan)
    lines = ["| profile | what | by | images/s | share of the rate | peak memory |", f"|{' --- |' * 6}"]
    for name, values in found.items():
        if "failed" in values:
            lines.append(f"| {name} | {values['failed']} | | |")
        elif "rate" in values:
            share, memory = values["rate"] * values["flop"] / peak, values["memory"] / 1e9
            lines.append(f"| {name} | {values['rate']:,.4g} | {share:.1%} | {memory:.1f} GB |")
    if QUALITY in found:
        lines.append(f"\n{QUALITY}: {found[QUALITY]['distance']:.1f}; {found[QUALITY]['how']}")
    return "\n".join([f"{peak / 1e12:.4g} bf16 TFLOP/s\n", *lines])


def goals(found: dict[str, dict[str, Any]]) -> Iterator[tuple[str, float, str, bool]]:
    """Yield what was measured, its value, its goal, and whether that is reached."""

    def of(name: str, key: str = "rate") -> float:
        return float(found.get(name, {}).get(key, math.nan))

    adm = TRAINING.format(ADM, "ours")
    wanted = [
        (f"{ADM} training, share of the bf16 rate", of(adm) * of(adm, "flop") / of(RATE, "flop_per_s"), 0.4),
        (f"{ADM} training, times diffusers'", of(adm) / of(TRAINING.format(ADM, "diffusers")), 1.3),
    ]
    for profile in BATCHES:
        calm, noisy = (of(SAMPLING.format(profile, eta, "ours")) for eta in ETAS)
        theirs = of(SAMPLING.format(profile, 1.0, "diffusers"))
        wanted.append((f"{profile} sampling at η = 1, times η = 0", noisy / calm, 0.95))
        wanted.append((f"{profile} sampling at η = 1, times diffusers'", noisy / theirs, 1.3))
    for what, value, goal in wanted:
        if not math.isnan(value):
            yield what, value, f"{goal:g}", value >= goal
    if QUALITY in found:
        distance = of(QUALITY, "distance")
        yield QUALITY, distance, f"at most {DISTANCE:g}", distance <= DISTANCE


def measure(path: Path, size: Size, device: torch.device, minutes: float) -> bool:
    """Measure what the file lacks, in the time given, and print all; return whether it is complete then."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    here, until, has_begun = machine(size, device), time.monotonic() + 60 * minutes, False
    found: dict[str, dict[str, Any]] = kept.setdefault(here, {})
    wanted = parts(size, device)
    for part, result in wanted.items():
        if part in found:
            continue
        is_late = part == QUALITY and has_begun and math.isfinite(until)
        if time.monotonic() >= until or is_late:
            break
        has_begun = True
        print(f"{part} ...", file=sys.stderr, flush=True)
        try:
            found[part] = result()
        except DiffctlError as error:  # such as data that cannot be had from here
            print(f"{part}: {error}", file=sys.stderr, flush=True)
            continue
        write_json(path, kept)
    print(here, end=", ")
    print(table({part: found[part] for part in (*wanted, *found) if part in found}))
    for what, value, goal, is_reached in () if size.is_small else goals(found):
        print_goal(what, f"{value:.4g}", goal, is_reached)
    if missing := [part for part in wanted if part not in found]:
        print(f"\n{len(missing)} of {len(wanted)} parts are missing: the same command continues with them.")
    return not missing


def main(arguments: list[str] | None = None) -> None:
    reader = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    reader.add_argument("file", nargs="?", type=Path, default=FILE, help="where results are kept")
    reader.add_argument("--minutes", type=float, default=math.inf, help="after which no further part begins")
    reader.add_argument("--small", action="store_true", help="only try whether all parts run")
    options = reader.parse_args(arguments)
    if not options.small and not torch.cuda.is_available():
        print("There is no GPU here, so nothing was measured.")
        return
    measure(options.file, SMALL if options.small else WHOLE, default_device(), options.minutes)


if __name__ == "__main__":
    main()
