"""The overhead of a sweep over its network: `python -m benchmarks.sweep [--small]`, about ten minutes.

Times are medians of rounds in turn, since the speed of a virtual machine changes by a tenth within minutes.

| what | promise on 2 CPU cores |
| --- | --- |
| 12 cells × 1,000 digits: sample, evaluate and report over network and feature passes | ≤ 1.25 |
| peak memory of sampling 50,000 images less that of sampling 1,000 | < 200 MB |
"""

import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import ROOT, SMALL, call_apart, print_goal, run, seconds_of, write_params
from diffusion.config import load
from diffusion.evaluate.features.extractors import extract, load_extractor
from diffusion.images.store import open_store
from diffusion.layout import MODEL, SAMPLES
from diffusion.model.model_file import load_model
from diffusion.model.precision import autocast
from diffusion.protocol.grid import Cell, grid
from diffusion.sample.cell_images import make_cell
from diffusion.sample.network_files import NetworkFiles
from diffusion.system.devices import default_device

STAGES = ("sample", "evaluate", "report")
ROUNDS = 3


def run_stage(folder: Path, stage: str) -> None:
    run(folder, sys.executable, "-m", "cli.entry", "stage", stage)


def network_seconds() -> float:
    """Return the seconds of the forward passes that the cells need, on inputs of the same size, alone."""
    config, device = load(), default_device()
    network, artefact = load_model(MODEL, device)
    spec, size = artefact.network, config.sample.batch_size
    x = torch.randn(size, *spec.shape, device=device)
    t, labels = torch.full((size,), 500, device=device), torch.arange(size, device=device) % spec.num_classes
    evaluate = autocast(network, artefact.precision)
    began = time.perf_counter()
    with torch.no_grad():
        for cell in grid(config.sample, config.sweep):
            for _ in range(cell.steps * config.sample.num_images // size):
                evaluate(x, t, labels)
    return time.perf_counter() - began


def feature_seconds() -> float:
    """Return the seconds of the extractor's forward passes over the images of every cell."""
    config = load()
    extractor = load_extractor(config.evaluate.extractor)
    stores = [open_store(SAMPLES / cell.name) for cell in grid(config.sample, config.sweep)]
    began = time.perf_counter()
    for store in stores:
        extract(extractor, store.images, config.evaluate.batch_size)
    return time.perf_counter() - began


def sample_cell(images: int) -> float:
    """Sample a cell in the working directory in two steps; return this process's peak memory in MB."""
    config = load().sample.model_copy(update={"num_images": images})
    make_cell(config, Cell(steps=2, eta=1.0), NetworkFiles(MODEL), Path(f"memory-{images}"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def medians(folder: Path, rounds: int) -> dict[str, float]:
    """Return the seconds of each stage, of the network and of the extractor; `folder` is the working one."""
    work: dict[str, Callable[[], float]] = {
        f"stage {name}": partial(seconds_of, partial(run_stage, folder, name)) for name in STAGES
    }
    work |= {"network alone": network_seconds, "features alone": feature_seconds}
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for made in ("samples", "runs/cells"):
            shutil.rmtree(folder / made, ignore_errors=True)
        for name, measure in work.items():
            times[name].append(measure())
            print(f"{name} {times[name][-1]:.1f} s", file=sys.stderr, flush=True)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def main(small: bool = False) -> None:
    images, rounds = (60, 1) if small else (1000, ROUNDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_params(folder, train={"steps": 60 if small else 100}, sample={"num_images": images})
        for stage in ("data", "reference", "train"):
            run_stage(folder, stage)
        os.chdir(folder)
        seconds = medians(folder, rounds)
        few, many = (
            float(call_apart(folder, "sweep", f"sample_cell({count})")) for count in (images, 50 * images)
        )
        os.chdir(ROOT)
    for what, value in seconds.items():
        print(f"{what:<16} {value:8.1f} s")
    stages = sum(value for what, value in seconds.items() if what.startswith("stage"))
    ratio = stages / (seconds["network alone"] + seconds["features alone"])
    print_goal("stages over network and features", f"{ratio:.2f}", "at most 1.25", ratio <= 1.25)
    figure = f"{many - few:.1f} MB more for {50 * images:,} images than for {images:,} ({few:.0f} MB)"
    print_goal("memory of sampling", figure, "under 200 MB", many - few < 200)


if __name__ == "__main__":
    main(SMALL in sys.argv)
