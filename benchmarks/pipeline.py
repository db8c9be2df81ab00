"""What commands and the pipeline cost themselves: `python -m benchmarks.pipeline [check] [demo] [--small]`.

Without a name both are measured, some minutes long. `demo` runs the pipeline in a clone.

| name | what | promise on 2 CPU cores |
| --- | --- | --- |
| `check` | processor time of `diffctl check` for digits, imports included | under 2 s |
| | the costliest that the sections allow: as many blocks, steps and cells as they may have | under 10 s |
| | a network that exceeds any memory | under 2 s: it is not built |
| `demo` | wall time less the train, sample and feature loops | under 90 s |
| | a `dvc repro` with nothing to do | under 5 s |
| | `diffctl --help` | under 0.5 s |
| | the first output of a command that takes seconds, at a terminal | under 0.5 s |
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import BIN, ROOT, environment, print_goal, run, run_measures, seconds_of, write_params
from diffusion.model.unet_config import MAX_BLOCKS, MAX_LEVELS
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_STEPS

RUNS = 5
SIDE = 2 ** (MAX_LEVELS - 1)
COSTLIEST: dict[str, dict[str, Any]] = {
    "data": {"image_size": SIDE},
    "model": {
        "channels": 64,
        "head_channels": 64,
        "channel_mult": [1] * MAX_LEVELS,
        "num_res_blocks": MAX_BLOCKS // MAX_LEVELS,
        "attention_resolutions": [SIDE >> level for level in range(MAX_LEVELS)],
    },
    "process": {"timesteps": MAX_STEPS},
    "train": {"steps": MAX_COUNT, "batch_size": MAX_BATCH},
    "sample": {"num_images": MAX_COUNT},
    "sweep": {  # each of its trajectories is computed, since an eta is above 1
        "steps": list(range(MAX_STEPS - 199, MAX_STEPS - 99)),
        "eta": [0.0, 1.0000001],
        "spacing": ["uniform", "quadratic", "trailing"],
    },
}
HUGE = {"channels": 16_384, "channel_mult": [64, 64], "head_channels": 64, "attention_resolutions": []}
SLOW_COMMANDS = ("history", "runs", "check", "show steps", "stage data", "sample --out a.png")


def check(small: bool) -> None:
    checks = {"digits": ({}, 2), "the costliest": (COSTLIEST, 10), "huge": ({"model": HUGE}, 2)}
    for name, (sections, goal) in checks.items():
        with tempfile.TemporaryDirectory() as folder:
            write_params(Path(folder), **sections)
            print_median(f"check of {name}", partial(check_seconds, folder), goal, small)


def check_seconds(folder: str) -> float:
    """Return the user and system seconds of one check, whatever it finds."""
    command, before = [sys.executable, "-m", "cli.entry", "check"], os.times()
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    after = os.times()
    if not re.search(r"^\d+ errors?, \d+ warnings?$", done.stdout, re.MULTILINE):
        sys.exit(f"check failed:\n{done.stdout}{done.stderr}")
    return sum(after[2:4]) - sum(before[2:4])


def print_median(what: str, measure: Callable[[], float], goal: float, small: bool) -> None:
    seconds = statistics.median(measure() for _ in range(1 if small else RUNS))
    print_goal(what, f"{seconds:.2f} s", f"under {goal:g} s", seconds < goal)


def demo(small: bool) -> None:
    """Print what the pipeline takes besides its loops, and single commands in its project."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "diffctl"
        run(ROOT, "git", "clone", "-q", str(ROOT), str(folder))
        if small:
            write_params(folder, train={"steps": 60}, sample={"num_images": 60}, sweep={"steps": [2]})
        print_overhead(folder)
        for command, goal in ((("dvc", "repro", "--quiet"), 5), (("diffctl", "--help"), 0.5)):
            seconds = partial(seconds_of, partial(run, folder, *command))
            print_median(" ".join(command), seconds, goal, small)
        for line in SLOW_COMMANDS:
            seconds = partial(first_output_seconds, folder, line)
            print_median(f"first output of {line}", seconds, 0.5, small)


def first_output_seconds(folder: Path, line: str) -> float:
    """Return the seconds until a command's first output at a terminal; then kill it."""
    ours, theirs = os.openpty()
    command, began = [str(BIN / "diffctl"), *line.split()], time.perf_counter()
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(command, cwd=folder, env=environment(), **streams) as process:
        os.close(theirs)
        os.read(ours, 1)
        seconds = time.perf_counter() - began
        process.kill()
    os.close(ours)
    return seconds


def print_overhead(folder: Path) -> None:
    """Run the demo; print its wall time and what no loop explains, scoring beyond the features included."""
    began = time.perf_counter()
    output = run(folder, "diffctl", "run")
    wall = time.perf_counter() - began
    found = re.findall(r"(\S+) ([\d,]+)/\S+ .*took ([\d.]+) s", output)  # ends of the progress lines
    images = {label: int(count.replace(",", "")) for label, count, _ in found}
    loops = {label: float(seconds) for label, _, seconds in found}
    parts = {
        "train": loops["train"],
        "sample": sum(seconds for label, seconds in loops.items() if label.startswith("steps")),
        "features": loops["reference"] * (1 + images["evaluate"] / images["reference"]),
    }
    for name, seconds in parts.items():
        print(f"demo, {name} loop: {seconds:.2f} s")
    rest = wall - sum(parts.values())
    print_goal("demo, all else", f"{rest:.2f} of {wall:.2f} s", "under 90 s", rest < 90)


def main() -> None:
    run_measures({"check": check, "demo": demo})


if __name__ == "__main__":
    main()
