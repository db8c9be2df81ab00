"""What trainings in shards are held to: a training with all that is cut, and one process's end of it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.images.store import open_store
from diffusion.train.checkpoint.state_files import SavedState
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.loop import train
from diffusion.train.observers import NullObserver
from diffusion.train.train_step import new_state
from tests.helpers.trainings import plan_of

CPU = torch.device("cpu")
SHORT: dict[str, Any] = {"steps": 4, "batch_size": 7, "precision": "fp32", "save_every": 100, "microbatch": 2}
CHANGES: dict[str, Any] = {
    "train": {**SHORT, "ema_profiles": {"sigma_rel": [0.1], "every": 2}},
    "model": {"dropout": 0.2, "gradient_checkpointing": True},
}
SHARDED = {**CHANGES, "train": {**CHANGES["train"], "shard": True}}


def numbers(state: SavedState, part: str) -> Tensor:
    """All numbers of a part, one after another."""
    names = sorted(name for name in state.tensors if name.startswith(f"{part}."))
    return torch.cat([state.tensors[name].double().flatten() for name in names])


def assert_close(ours: SavedState, theirs: SavedState) -> None:
    """But for rounding, by which Adam's first steps move weights without a true gradient anywhere."""
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert ours.values.step == theirs.values.step
    for part, far in (("network", 1e-3), ("ema", 1e-3), ("ema_profiles", 1e-3), ("optimizer", 1e-4)):
        a, b = numbers(ours, part), numbers(theirs, part)
        assert float((a - b).norm()) < far * float(b.norm()), part


def alone(store: Path) -> SavedState:
    """What one process makes of it."""
    images = open_store(store)
    state = new_state(plan_of(images, **CHANGES), CPU)
    train(state, images, ProcessGroup(CPU), NullObserver(), lambda state: None, lambda: None)
    return state.saved()
