"""The overhead of a sweep over its network: `python -m benchmarks.sweep`, about ten minutes.

Times are medians of rounds in turn, since the speed of a virtual machine changes by a tenth within minutes.

| what | promise on 2 CPU cores |
| --- | --- |
| 12 cells × 1,000 digits: sample, evaluate and report over network and feature passes | ≤ 1.25 |
| resident memory of sampling 50,000 images less that of sampling 1,000 | < 200 MB |
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
STAGES = ("sample", "evaluate", "report")
NUM_IMAGES = 1000
ROUNDS = 3
OWN_CODE = {**os.environ, "PYTHONPATH": str(ROOT)}


def project(folder: Path) -> None:
    """The digits profile with 12 cells of 1,000 images, as far as the model, which is trained shortly."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "profiles/digits.yaml").read_text(encoding="utf-8"))
    values["train"]["steps"] = 100
    values["sample"]["num_images"] = NUM_IMAGES
    (folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    for stage in ("data", "reference", "train"):
        stage_seconds(folder, stage)


def stage_seconds(folder: Path, stage: str) -> float:
    """Wall seconds of a stage's command, which must succeed."""
    command = [sys.executable, "-m", "cli.entry", "stage", stage]
    environment = {**OWN_CODE, "MLFLOW_TRACKING_URI": "", "PREFECT_API_URL": ""}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"stage {stage} failed:\n{done.stderr}")
    return time.perf_counter() - began


def network_seconds() -> float:
    """The evaluations of the network that the cells need, on inputs of the same size, and nothing else."""
    import torch

    from diffusion.config import load
    from diffusion.layout import MODEL
    from diffusion.model.model_file import load_model
    from diffusion.model.precision import autocast
    from diffusion.protocol.grid import grid
    from diffusion.system.devices import default_device

    config, device = load(), default_device()
    network, artefact = load_model(MODEL, device)
    spec, size = artefact.network, config.sample.batch_size
    x = torch.randn(size, spec.in_channels, spec.image_size, spec.image_size, device=device)
    t, labels = torch.full((size,), 500, device=device), torch.arange(size, device=device) % spec.num_classes
    evaluate = autocast(network, artefact.precision)
    began = time.perf_counter()
    with torch.no_grad():
        for cell in grid(config.sample, config.sweep):
            for _ in range(cell.steps * NUM_IMAGES // size):
                evaluate(x, t, labels)
    return time.perf_counter() - began


def feature_seconds() -> float:
    """The extractor's passes over the images of every cell."""
    from diffusion.config import load
    from diffusion.evaluate.features.extractors import extract, load_extractor
    from diffusion.images.store import open_store
    from diffusion.layout import SAMPLES
    from diffusion.protocol.grid import grid

    config = load()
    extractor = load_extractor(config.evaluate.extractor)
    stores = [open_store(SAMPLES / cell.name) for cell in grid(config.sample, config.sweep)]
    began = time.perf_counter()
    for store in stores:
        extract(extractor, store.images, config.evaluate.batch_size)
    return time.perf_counter() - began


def sampling_megabytes(num_images: int) -> float:
    """Peak resident memory of a process that samples one cell of so many images in two steps."""
    code = f"import benchmarks.sweep as s; print(s.sample_cell({num_images}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=OWN_CODE, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


def sample_cell(num_images: int) -> float:
    """Sample a cell of the project in the working directory; this process's peak memory in MB."""
    from diffusion.config import load
    from diffusion.layout import MODEL
    from diffusion.protocol.grid import Cell
    from diffusion.sample.cell_images import make_cell
    from diffusion.sample.network_files import NetworkFiles

    config = load()
    sample = config.sample.model_copy(update={"num_images": num_images})
    config = config.model_copy(update={"sample": sample})
    make_cell(config.sample, Cell(2, 1.0), NetworkFiles(MODEL), Path(f"memory-{num_images}"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def medians(folder: Path) -> tuple[dict[str, float], float, float]:
    """Seconds of each stage, of the network alone and of the extractor alone, in `folder`, which is cwd."""
    work: dict[str, Callable[[], float]] = {name: partial(stage_seconds, folder, name) for name in STAGES}
    work |= {"network": network_seconds, "features": feature_seconds}
    rounds = []
    for _ in range(ROUNDS):
        for made in ("samples", "runs/cells"):
            shutil.rmtree(folder / made, ignore_errors=True)
        rounds.append({name: measure() for name, measure in work.items()})
        print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in rounds[-1].items()), file=sys.stderr)
    middle = {name: statistics.median(times[name] for times in rounds) for name in work}
    return {name: middle[name] for name in STAGES}, middle["network"], middle["features"]


def main() -> None:
    """Make the project in a scratch folder, measure, print a table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project(folder)
        os.chdir(folder)
        stages, network, features = medians(folder)
        few, many = sampling_megabytes(NUM_IMAGES), sampling_megabytes(50 * NUM_IMAGES)
        os.chdir(ROOT)
    for stage, seconds in stages.items():
        print(f"{'stage ' + stage:<36} {seconds:8.1f} s")
    print(f"{'network evaluations alone':<36} {network:8.1f} s")
    print(f"{'feature passes alone':<36} {features:8.1f} s")
    print(f"{'whole sweep over these':<36} {sum(stages.values()) / (network + features):8.2f}")
    print(f"{'memory of 50,000 less 1,000 images':<36} {many - few:8.1f} MB ({many:.0f} and {few:.0f})")


if __name__ == "__main__":
    main()
