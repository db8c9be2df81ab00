"""Processes that train together, without the command line: `python -m` this module, one per rank.

On CPUs over gloo, and on a GPU each over NCCL.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from diffusion.images.store import ImageStore, open_store
from diffusion.process.loss_registry import OBJECTIVES
from diffusion.system.errors import Interrupted
from diffusion.train.checkpoint.run_dir import restore_state
from diffusion.train.checkpoint.state_files import SavedState, newest_state, save_state
from diffusion.train.distributed import process_group
from diffusion.train.distributed.process_group import ProcessGroup, join_group
from diffusion.train.initial_state import new_state
from diffusion.train.loop import train
from diffusion.train.observers import Observer
from diffusion.train.trainer import share_state
from tests.conftest import environment
from tests.helpers.objectives import ENTRY
from tests.helpers.trainings import Recorder, plan_of

CPU = torch.device("cpu")
DEADLINE = 600  # seconds that fail a test


class Job(NamedTuple):
    """A training in a folder: from its newest state to the end, or to a stop after so many steps."""

    folder: Path
    changes: dict[str, Any]
    stop: int | None = None


def trained_in_turn(store: Path, world: int, jobs: Sequence[Job], kind: str = "cpu") -> list[SavedState]:
    """Run the trainings one after another in the same processes; return the newest state of each folder.

    Sums are sent in many small buckets.
    """
    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
    server = dist.TCPStore("127.0.0.1", 0, world, is_master=True, wait_for_workers=False)
    listed = json.dumps([(str(job.folder), job.changes, job.stop) for job in jobs])
    arguments = [str(world), str(server.port), str(store), listed, kind]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.process_pair", str(rank), *arguments],
            env={**environment(), "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for process in processes:
        _, output = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, output
    found = [newest_state(job.folder) for job in jobs]
    return [saved for saved in found if saved is not None]


def device_of(kind: str, rank: int) -> torch.device:
    """Return the rank's GPU, set as the current device, or the CPU."""
    if kind != "cuda":
        return CPU
    device = torch.device(kind, rank)
    torch.cuda.set_device(device)
    return device


def main() -> None:
    """Run one rank."""
    rank, world, port = map(int, sys.argv[1:4])
    images, jobs = open_store(Path(sys.argv[4])), json.loads(sys.argv[5])
    torch.set_num_threads(1)
    OBJECTIVES.data["learned"] = ENTRY
    process_group.BUCKET = 20_000
    group = ProcessGroup(device_of(sys.argv[6], rank), rank, world)
    with join_group(group, dist.TCPStore("127.0.0.1", port, world, is_master=False)):
        for folder, changes, stop in jobs:
            run_job(images, group, Job(Path(folder), changes, stop))


def run_job(images: ImageStore, group: ProcessGroup, job: Job) -> None:
    """Train as this rank."""
    state = new_state(plan_of(images, **job.changes), group.device, group=group)
    found = newest_state(job.folder) if group.is_rank_zero else None
    restore_state(state, share_state(state, group, found), "the state")

    def check_stop() -> None:
        if state.step == job.stop:
            raise Interrupted("stopped", 15)

    observer = Recorder(partial(save_state, job.folder)) if group.is_rank_zero else Observer()
    with suppress(Interrupted):
        train(state, images, group, observer, check_stop)


SHORT: dict[str, Any] = {
    "steps": 4, "batch_size": 7, "precision": "fp32", "tf32": False, "save_every": 100, "microbatch": 2
}  # fmt: skip
CHANGES: dict[str, Any] = {
    "train": {**SHORT, "ema_profiles": {"sigma_rel": [0.1], "every": 2}},
    "model": {"dropout": 0.2, "gradient_checkpointing": True},
}
SHARDED = {**CHANGES, "train": {**CHANGES["train"], "shard": True}}


def numbers(state: SavedState, part: str) -> Tensor:
    """Return all numbers of a part in one vector."""
    names = sorted(name for name in state.tensors if name.startswith(f"{part}."))
    return torch.cat([state.tensors[name].double().flatten() for name in names])


def assert_close(ours: SavedState, theirs: SavedState) -> None:
    """Assert equality up to rounding, which moves weights without a true gradient in Adam's first steps."""
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert ours.values.step == theirs.values.step
    for part, far in (("network", 1e-3), ("ema", 1e-3), ("ema_profiles", 1e-3), ("optimizer", 1e-4)):
        a, b = numbers(ours, part), numbers(theirs, part)
        assert float((a - b).norm()) < far * float(b.norm()), part


def alone(
    store: Path,
    changes: dict[str, Any] = CHANGES,
    saved: SavedState | None = None,
    device: torch.device = CPU,  # which decides the dropout masks
) -> SavedState:
    """Return the last state of one process, which may begin from a saved one."""
    images = open_store(store)
    state = new_state(plan_of(images, **changes), device)
    if saved:
        state.restore(saved)
    train(state, images, ProcessGroup(device), Observer(), lambda: None)
    return state.saved()


SMALL_DIT = {"name": "dit", "width": 32, "depth": 2, "heads": 4}
_PROCESS = {"variance": "learned", "loss": "hybrid", "prediction": "eps"}
_AUGMENT = {"augment": {"probability": 1.0}}  # so that every image is resampled
_CHECKPOINTS = {"dropout": 0.2, "gradient_checkpointing": True}

_LOW_RES = {"low_res": 4, "cond_noise": 0.5}
TRAININGS: dict[str, dict[str, Any]] = {
    "simple": {
        "process": {"variance": "small", "loss": "simple", "prediction": "eps"},
        "model": {"class_cond": False},
        "train": {"p_uncond": 0.0},
    },
    "vlb": {"process": {**_PROCESS, "loss": "vlb"}, "train": {}},
    "velocity": {"process": {**_PROCESS, "prediction": "velocity", "weighting": "min-snr"}, "train": {}},
    "checkpoints": {"process": _PROCESS, "model": _CHECKPOINTS, "train": {}},
    "dit": {"process": _PROCESS, "model": {**SMALL_DIT, **_CHECKPOINTS, **_LOW_RES}, "train": _AUGMENT},
    "all": {
        "process": _PROCESS,
        "model": {"dropout": 0.2, **_LOW_RES},
        "data": {"flip": True},
        "train": {**_AUGMENT, "ema_profiles": {"sigma_rel": [0.05, 0.1], "every": 2}},
    },
}


if __name__ == "__main__":
    main()
