"""Training and sampling on a GPU against diffusers: `python -m benchmarks.gpu [FILE] [--minutes M]`.

For the profiles cifar10, imagenet64 and imagenet64-adm, in bf16 and compiled: images/s, share of the GPU's
measured bf16 matrix rate, peak memory, a profile of ours. Then Fashion-MNIST is trained for seven minutes,
and the distance of 2,000 of its images from real ones. FILE stores the parts: the same command continues with
missing ones and prints all results with their goals. No part starts after `--minutes`, and the long training
is only the first part of a call. Without diffusers only ours is measured. `--small` runs all parts with
tiny networks, also on a CPU.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_contenders
from benchmarks.gpu_measures import BATCHES, SMALL, WHOLE, Result, Size, matrix_rate
from diffusion.config import load
from diffusion.system.devices import default_device
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_json
from diffusion.train.step_memory import is_out_of_memory, oom_hint

FILE = Path("benchmarks-gpu.json")
RATE = "matrix rate"
ETAS = (0.0, 1.0)
QUALITY = "fashion-mnist | distance"
FOR_QUALITY = ("PIL", "scipy", "torch_fidelity", "efficientnet_lite_pytorch")
MINUTES = 7  # of that training: three of ten are left to begin, compile, sample and score
ADM = "imagenet64-adm"
Part = Callable[[], dict[str, Any]]


def parts(size: Size, device: torch.device, folder: Path) -> dict[str, Part]:
    """What is measured, by name, in order."""
    peers = find_spec("diffusers") is not None
    found: dict[str, Part] = {RATE: lambda: {"flop_per_s": matrix_rate(device, size.matrix)}}
    for profile in BATCHES:
        for by in ("ours", "diffusers")[: 1 + peers]:
            loop = getattr(gpu_contenders, f"train_{by}")
            name = training_name(profile, size, by)
            found[name] = partial(_training, loop, profile, size, device, folder)
        for eta in ETAS:
            for by in ("ours", "diffusers")[: 1 + peers]:
                sampler = getattr(gpu_contenders, f"sample_{by}")
                name = sampling_name(profile, size, eta, by)
                found[name] = partial(_sampling, sampler, profile, eta, size, device, folder)
    if all(map(find_spec, FOR_QUALITY)):
        found[QUALITY] = partial(_quality, size, device, folder)
    return found


def training_name(profile: str, size: Size, by: str) -> str:
    """The part that measures such a training."""
    return f"{profile} | training, {size.batch(profile)} a step | {by}"


def sampling_name(profile: str, size: Size, eta: float, by: str) -> str:
    """The part that measures such a sampling."""
    return f"{profile} | {size.ddim_steps} DDIM steps, η = {eta:g} | {by}"


def _quality(size: Size, device: torch.device, folder: Path) -> dict[str, Any]:
    """The distance of images of a training of some minutes, and what it was; of digits where it is small."""
    from benchmarks import quality  # needs more than the other parts

    profile = quality.PROFILES / "digits.yaml" if size.small else quality.PROFILE
    wanted = quality.Size(1, 12, 2) if size.small else quality.Size(60 * MINUTES)
    config = load(profile)
    data = quality.prepared(config, folder / profile.stem)
    images, how = quality.ours(config, data.train, wanted, device)
    return {"distance": quality.Judge(data.test.images, device)(images), "how": how}


def _training(loop: Callable[..., Result], profile: str, size: Size, *where: Any) -> dict[str, Any]:
    device, folder = where
    return _measured(loop, *gpu_contenders.described(profile, size, device, folder), size, device)


def _sampling(
    sampler: Callable[..., Result], profile: str, eta: float, size: Size, *where: Any
) -> dict[str, Any]:
    device, folder = where
    plan, _ = gpu_contenders.described(profile, size, device, folder)
    return _measured(sampler, plan, eta, size, device)


def _measured(contender: Callable[..., Result], *arguments: Any) -> dict[str, Any]:
    """The result; a lack of memory is one too. What the contender compiled is forgotten afterwards."""
    torch.compiler.reset()
    try:
        return contender(*arguments)._asdict()
    except DiffctlError as error:
        if oom_hint("") not in str(error):
            raise
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return {"failed": "the memory does not suffice"}


def machine(size: Size, device: torch.device) -> dict[str, Any]:
    """Return what results must share to be in one file."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "torch": torch.__version__, "small": size.small}


def read(path: Path, here: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts that the file has; UsageError where it is another machine's, or no file of this."""
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        there, found = kept["machine"], kept["parts"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is no file of this benchmark: name another one") from None
    if there != here:
        raise UsageError(f"{path} has results of {there}, and this is {here}: name another file")
    return dict(found)


def table(found: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown, and below them where the time of ours went."""
    rate = found.get(RATE, {}).get("flop_per_s", math.nan)
    lines = ["| profile | what | by | images/s | share of the rate | peak memory |", f"|{' --- |' * 6}"]
    spent = []
    for name, values in found.items():
        if name == RATE:
            continue
        if "distance" in values:
            spent += [f"\n{name}: {values['distance']:.1f}; {values['how']}"]
            continue
        if "failed" in values:
            lines.append(f"| {name} | {values['failed']} | | |")
            continue
        share, memory = values["rate"] * values["flop"] / rate, values["memory"] / 1e9
        lines.append(f"| {name} | {values['rate']:,.4g} | {share:.1%} | {memory:.1f} GB |")
        if values["top"]:
            spent += [f"\n{name}: {values['idle']:.0%} of the time no kernel ran; the longest were"]
            spent += [f"  {part:6.1%}  {kernel[:90]}" for kernel, part in values["top"]]
    return "\n".join([f"{rate / 1e12:.4g} bf16 TFLOP/s\n", *lines, *spent])


def goals(found: dict[str, dict[str, Any]], size: Size) -> list[tuple[str, float, float, bool]]:
    """Of what was measured: what it is, how much, the goal, and whether that is met."""

    def of(name: str, key: str = "rate") -> float:
        return float(found.get(name, {}).get(key, math.nan))

    adm = training_name(ADM, size, "ours")
    wanted = [
        (f"{ADM} training, share of the bf16 rate", of(adm) * of(adm, "flop") / of(RATE, "flop_per_s"), 0.4),
        (f"{ADM} training, times diffusers'", of(adm) / of(training_name(ADM, size, "diffusers")), 1.3),
    ]
    for profile in BATCHES:
        calm, noisy = (of(sampling_name(profile, size, eta, "ours")) for eta in ETAS)
        theirs = of(sampling_name(profile, size, 1.0, "diffusers"))
        wanted.append((f"{profile} sampling at η = 1, times η = 0", noisy / calm, 0.95))
        wanted.append((f"{profile} sampling at η = 1, times diffusers'", noisy / theirs, 1.3))
    known = [(what, value, goal, value >= goal) for what, value, goal in wanted if not math.isnan(value)]
    far = of(QUALITY, "distance")
    return known if math.isnan(far) else [*known, (f"{QUALITY}, at most", far, 200.0, far <= 200.0)]


def format_goals(reached: list[tuple[str, float, float, bool]]) -> str:
    """A line for each goal."""
    lines = (
        f"{what}: {value:.4g} (goal: {goal:g}; {'met' if is_met else 'MISSED'})"
        for what, value, goal, is_met in reached
    )
    return "\n".join(lines)


def measure(path: Path, size: Size, device: torch.device, minutes: float) -> bool:
    """Measure what the file lacks, in the time given, and print all; whether it is whole then."""
    here = machine(size, device)
    found, until, begun = read(path, here), time.monotonic() + 60 * minutes, False
    with tempfile.TemporaryDirectory() as name:
        wanted = parts(size, device, Path(name))
        for part, made in wanted.items():
            if part in found:
                continue
            is_late = part == QUALITY and begun and math.isfinite(until)
            if time.monotonic() >= until or is_late:
                break
            begun = True
            print(f"{part} ...", file=sys.stderr, flush=True)
            try:
                found[part] = made()
            except DiffctlError as error:  # such as data that cannot be had from here
                print(f"{part}: {error}", file=sys.stderr, flush=True)
                continue
            write_json(path, {"machine": here, "parts": found})
    print(f"{here['device']}, torch {here['torch']}, ", end="")
    print(table({part: found[part] for part in (*wanted, *found) if part in found}))
    if not size.small:
        print(f"\n{format_goals(goals(found, size))}")
    missing = [part for part in wanted if part not in found]
    if missing:
        print(f"\n{len(missing)} of {len(wanted)} parts are missing: the same command continues with them.")
    return not missing


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, 2 for what cannot be done."""
    reader = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    reader.add_argument("file", nargs="?", type=Path, default=FILE, help="where results are kept")
    reader.add_argument("--minutes", type=float, default=math.inf, help="after which no further part begins")
    reader.add_argument("--small", action="store_true", help="only try whether all parts run")
    options = reader.parse_args(arguments)
    if not options.small and not torch.cuda.is_available():
        print("There is no GPU here, so nothing was measured.")
        return 0
    try:
        measure(options.file, SMALL if options.small else WHOLE, default_device(), options.minutes)
    except UsageError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
