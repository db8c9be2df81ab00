"""This library against its peers, the same network and batch: `python -m benchmarks.library`.

Each figure is the median of several runs in turn, every run in a process of its own. `--small` only tries
whether it runs; `--shape S` takes one shape; `--rounds N` sets the runs. With OMP_NUM_THREADS=1 the time of
the processor counts instead of the clock's, which holds on a machine that has other work too.

| what | goal, against the best of the peers at the same network |
| --- | --- |
| training and DDIM images/s with `precision: auto` | 1.5 and 2 times |
| the same in float32, not compiled | 1.1 times both |
| peak memory | no higher |
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec

PEERS = {"diffusers": "diffusers", "ddpm-pytorch": "denoising_diffusion_pytorch"}
TASKS = ("train", "sample")
GOALS = {("auto", "train"): 1.5, ("auto", "sample"): 2.0, ("fp32", "train"): 1.1, ("fp32", "sample"): 1.1}
KINDS = {  # of operators, by what their names hold; the first that fits
    "optimiser, clipping, EMA": ("adamw", "foreach", "lerp", "vector_norm"),
    "convolutions": ("convolution", "conv2d"),
    "matrix products and attention": ("mm", "bmm", "attention", "softmax", "linear"),
    "norms": ("norm",),
    "SiLU": ("silu",),
    "copies, casts, concatenation": ("copy", "cat", "to_copy", "contiguous", "fill", "zero", "empty"),
    "sums and products of feature maps": ("add", "mul", "div", "sum", "sub"),
}

Found = dict[tuple[str, str], dict[str, float]]
"""(contender, task) → rate in images/s, memory in MB, parameters."""


def measure(contender: str, name: str, task: str, seconds: float) -> dict[str, float]:
    """In this process: median seconds of a step or of a whole DDIM sample, and the peak memory in MB."""
    from benchmarks.contenders import SHAPES, build

    work = build(contender, SHAPES[name])
    step = work.train if task == "train" else work.sample
    return {
        "rate": SHAPES[name].batch / median_seconds(step, seconds),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "parameters": work.parameters,
    }


def median_seconds(step: Callable[[], object], seconds: float) -> float:
    """Of at least two calls and `seconds`; a first call warms up and is not counted."""
    clock = time.process_time if os.environ.get("OMP_NUM_THREADS") == "1" else time.perf_counter
    step()
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        began = clock()
        step()
        times.append(clock() - began)
    return statistics.median(times)


def matmul_rates(size: int = 2048) -> dict[str, float]:
    """GFLOP/s of a large square matrix product in each precision."""
    import torch

    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(2, size, size).to(dtype)
        rates[name] = 2 * size**3 / median_seconds(lambda a=a, b=b: a @ b, 0.5) / 1e9
    return rates


def work_of(name: str) -> dict[str, float]:
    """GFLOP an image of this library's network: a forward pass, and a training step."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.contenders import SHAPES, described, random_images
    from diffusion.model.unet import UNet

    network = UNet(described("fp32", SHAPES[name])[0].network)
    images = random_images(SHAPES[name])
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        network(images, torch.zeros(len(images), dtype=torch.long))
    with FlopCounterMode(display=False) as step:
        network(images, torch.zeros(len(images), dtype=torch.long)).sum().backward()
    return {
        task: counter.get_total_flops() / len(images) / 1e9
        for task, counter in (("sample", forward), ("train", step))
    }


def profile(contender: str, name: str, task: str) -> dict[str, float]:
    """Share of the operators' own time by kind, over three steps or one sample, in all threads together."""
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from benchmarks.contenders import SHAPES, build

    work = build(contender, SHAPES[name])
    step, times = (work.train, 3) if task == "train" else (work.sample, 1)
    step()
    everywhere = _ExperimentalConfig(profile_all_threads=True)  # sampling works in threads of its own
    with profiler(activities=[ProfilerActivity.CPU], experimental_config=everywhere) as seen:
        for _ in range(times):
            step()
    shares = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for event in seen.key_averages():
        shares[kind_of(event.key)] += event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: share / total for kind, share in shares.items()}


def kind_of(operator: str) -> str:
    """The kind of an operator by its name."""
    fitting = (kind for kind, parts in KINDS.items() if any(part in operator.lower() for part in parts))
    return next(fitting, "the rest")


def apart(function: str, *arguments: object) -> dict[str, float]:
    """What a function of this module returns, run in a process of its own; ends the program if it fails."""
    call = f"library.{function}(*{arguments!r})"
    code = f"import json; from benchmarks import library; print(json.dumps({call}))"
    environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, env=environment)
    if done.returncode:
        sys.exit(f"{call} failed")
    values: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return values


def contenders() -> list[str]:
    """This library, and the peers that are installed."""
    for name, module in PEERS.items():
        if not find_spec(module):
            print(f"{name} is not installed (pip install 'diffctl[bench]'): left out")
    return ["auto", "fp32", *(name for name, module in PEERS.items() if find_spec(module))]


def compare(name: str, rounds: int, seconds: float) -> Found:
    """(contender, task) → medians over the rounds, the contenders in turn."""
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    entrants = contenders()
    for turn in range(rounds):
        for task in TASKS:
            for contender in entrants:
                run = apart("measure", contender, name, task, seconds)
                line = f"{name} {turn + 1}/{rounds} {contender} {task}: {run['rate']:.2f} images/s"
                print(f"{line}, {run['memory']:.0f} MB", file=sys.stderr, flush=True)
                runs.setdefault((contender, task), []).append(run)
    return {
        key: {what: statistics.median(run[what] for run in of) for what in of[0]} for key, of in runs.items()
    }


def show_rates(found: Found) -> None:
    """The table of rates and memory, then each goal and whether it is reached."""
    print("| | parameters | training images/s | peak MB | 10 DDIM steps images/s | peak MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for contender in dict.fromkeys(key[0] for key in found):
        train, sample = found[contender, "train"], found[contender, "sample"]
        cells = [
            contender,
            f"{train['parameters'] / 1e6:.2f} M",
            f"{train['rate']:.1f}",
            f"{train['memory']:.0f}",
            f"{sample['rate']:.2f}",
            f"{sample['memory']:.0f}",
        ]
        print(f"| {' | '.join(cells)} |")
    peers = [peer for peer in PEERS if (peer, "train") in found and same_size(found, peer)]
    for (contender, task), goal in GOALS.items() if peers else ():
        ratio = found[contender, task]["rate"] / max(found[peer, task]["rate"] for peer in peers)
        print(f"{contender} {task}: {ratio:.2f} times the best peer (goal: {goal}; {mark(ratio >= goal)})")
    for task in TASKS if peers else ():
        ratio = found["auto", task]["memory"] / min(found[peer, task]["memory"] for peer in peers)
        print(f"auto {task}: {ratio:.2f} times the least memory of a peer (goal: 1; {mark(ratio <= 1)})")


def same_size(found: Found, peer: str) -> bool:
    """Return whether the peer's network has our size; otherwise it is only shown."""
    return 0.9 < found[peer, "train"]["parameters"] / found["auto", "train"]["parameters"] < 1.1


def mark(reached: bool) -> str:
    """The word for it."""
    return "reached" if reached else "MISSED"


def show_shares(name: str, found: Found, precision: str) -> None:
    """What part of the matrix products' rate a step and a sample reach, and where the time goes."""
    peak, work = apart("matmul_rates"), apart("work_of", name)
    print(f"matrix products of 2048³: {peak['fp32']:.0f} GFLOP/s in fp32, {peak['bf16']:.0f} in bf16")
    for contender, used in (("auto", precision), ("fp32", "fp32")):
        for task in TASKS:
            passes = 10 if task == "sample" else 1
            rate = found[contender, task]["rate"] * passes * work[task]
            kinds = apart("profile", contender, name, task).items()
            print(
                f"{contender} ({used}) {task}: {rate:.0f} GFLOP/s, {rate / peak[used]:.0%} of {used}'s; "
                f"time: {', '.join(f'{kind} {share:.0%}' for kind, share in kinds)}"
            )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.library", description=__doc__)
    parser.add_argument("--shape", choices=["S", "M"], help="this shape alone")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, in turn")
    parser.add_argument("--small", action="store_true", help="only try whether it runs")
    return parser.parse_known_args()[0]


def main() -> None:
    from diffusion.system.devices import default_device
    from diffusion.train.plan import resolve_precision

    given = options()
    rounds, seconds = (1, 0.0) if given.small else (given.rounds, 2.0)
    print(", ".join(f"{name} {version(name)}" for name in ("torch", *filter(find_spec, PEERS.values()))))
    precision = resolve_precision("auto", default_device())
    for name in [given.shape] if given.shape else ["S"] if given.small else ["S", "M"]:
        print(f"\n{name}: `precision: auto` is {precision}", flush=True)
        found = compare(name, rounds, seconds)
        show_rates(found)
        show_shares(name, found, precision)


if __name__ == "__main__":
    main()
