"""Training and sampling on a GPU against diffusers: `python -m benchmarks.gpu [FILE] [--minutes M]`.

For the profiles cifar10, imagenet64 and imagenet64-adm, both in bf16 and compiled: images/s, the share of the
GPU's measured bf16 matrix rate, peak memory; of ours what a profiler says of the rest. What is measured is
kept in FILE, part by part: the same command goes on with what is missing, and prints all that is there.
After `--minutes` no further part begins. Without diffusers ours alone are measured. `--small` tries with tiny
networks whether all parts run, on a CPU where there is no GPU. Else there is nothing to measure without a
GPU, which is said.
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

from benchmarks import gpu_sampling, gpu_training
from benchmarks.gpu_measures import BATCHES, SMALL, WHOLE, Result, Size, matrix_rate
from diffusion.system.devices import default_device
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_json
from diffusion.train.memory import is_shortage, remedy

FILE = Path("benchmarks-gpu.json")
RATE = "matrix rate"
ETAS = (0.0, 1.0)
Part = Callable[[], dict[str, Any]]


def parts(size: Size, device: torch.device, folder: Path) -> dict[str, Part]:
    """What is measured, by name, in order."""
    peers = find_spec("diffusers") is not None
    found: dict[str, Part] = {RATE: lambda: {"flop_per_s": matrix_rate(device, size.matrix)}}
    for profile in BATCHES:
        loops = [gpu_training.ours, *([gpu_training.diffusers] if peers else [])]
        for loop in loops:
            name = f"{profile} | training, {size.batch(profile)} a step | {loop.__name__}"
            found[name] = partial(_training, loop, profile, size, device, folder)
        samplers = [gpu_sampling.ours, *([gpu_sampling.diffusers] if peers else [])]
        for eta in ETAS:
            for sampler in samplers:
                name = f"{profile} | {size.ddim_steps} DDIM steps, η = {eta:g} | {sampler.__name__}"
                found[name] = partial(_sampling, sampler, profile, eta, size, device, folder)
    return found


def _training(loop: Callable[..., Result], profile: str, size: Size, *where: Any) -> dict[str, Any]:
    device, folder = where
    return _measured(loop, *gpu_training.described(profile, size, device, folder), size, device)


def _sampling(
    sampler: Callable[..., Result], profile: str, eta: float, size: Size, *where: Any
) -> dict[str, Any]:
    device, folder = where
    plan, _ = gpu_training.described(profile, size, device, folder)
    return _measured(sampler, plan, eta, size, device)


def _measured(contender: Callable[..., Result], *arguments: Any) -> dict[str, Any]:
    """The result; a lack of memory is one too. What the contender compiled is forgotten afterwards."""
    torch.compiler.reset()
    try:
        return contender(*arguments)._asdict()
    except DiffctlError as error:
        if remedy("") not in str(error):
            raise
    except RuntimeError as error:
        if not is_shortage(error):
            raise
    return {"failed": "the memory does not suffice"}


def machine(size: Size, device: torch.device) -> dict[str, Any]:
    """What results must share to stand in one file."""
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
        if "failed" in values:
            lines.append(f"| {name} | {values['failed']} | | |")
            continue
        share, memory = values["rate"] * values["flop"] / rate, values["memory"] / 1e9
        lines.append(f"| {name} | {values['rate']:,.4g} | {share:.1%} | {memory:.1f} GB |")
        if values["top"]:
            spent += [f"\n{name}: {values['idle']:.0%} of the time no kernel ran; the longest were"]
            spent += [f"  {part:6.1%}  {kernel[:90]}" for kernel, part in values["top"]]
    return "\n".join([f"{rate / 1e12:.4g} bf16 TFLOP/s\n", *lines, *spent])


def measure(path: Path, size: Size, device: torch.device, minutes: float) -> bool:
    """Measure what the file lacks, in the time given, and print all; whether it is whole then."""
    here = machine(size, device)
    found, until = read(path, here), time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as name:
        wanted = parts(size, device, Path(name))
        for part, made in wanted.items():
            if part in found:
                continue
            if time.monotonic() >= until:
                break
            print(f"{part} ...", file=sys.stderr, flush=True)
            found[part] = made()
            write_json(path, {"machine": here, "parts": found})
    print(f"{here['device']}, torch {here['torch']}, ", end="")
    print(table({part: found[part] for part in (*wanted, *found) if part in found}))
    missing = [part for part in wanted if part not in found]
    if missing:
        print(f"\n{len(missing)} of {len(wanted)} parts are missing: the same command goes on with them.")
    return not missing


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, 2 for what cannot be done."""
    reader = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    reader.add_argument("file", nargs="?", type=Path, default=FILE, help="where results are kept")
    reader.add_argument("--minutes", type=float, default=math.inf, help="after which no further part begins")
    reader.add_argument("--small", action="store_true", help="only try whether all parts run")
    asked = reader.parse_args(arguments)
    if not asked.small and not torch.cuda.is_available():
        print("There is no GPU here, so nothing was measured.")
        return 0
    try:
        measure(asked.file, SMALL if asked.small else WHOLE, default_device(), asked.minutes)
    except UsageError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
