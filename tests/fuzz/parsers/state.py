"""A training's saved state, and a training that resumes from it."""

import warnings
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from diffusion.config import parse as parse_config
from diffusion.system.checksums import CHECKSUM_BYTES
from diffusion.system.errors import DiffctlError
from diffusion.train.checkpoint.run_dir import RunDir
from diffusion.train.checkpoint.state_files import SavedState, save_state
from diffusion.train.plan import plan_training
from diffusion.train.train_step import TrainState, new_state
from tests.conftest import params

FILE = "state-000000003.sealed"
META = {
    "name": "digits",
    "classes": [str(digit) for digit in range(10)],
    "counts": [6] * 10,
    "image_size": 8,
    "channels": 1,
    "digest": "d" * 64,
}


@cache
def _state() -> TrainState:
    shape = {
        "channels": 8,
        "channel_mult": [1],
        "attention_resolutions": [],
        "num_res_blocks": 1,
        "head_channels": 8,
    }
    return new_state(
        plan_training(parse_config(params(model=shape), "here"), META, torch.device("cpu")),
        torch.device("cpu"),
    )


@cache
def seeds() -> list[bytes]:
    """Return the state after three steps of a small network, moments included."""
    state = _state()
    for weight in state.network.parameters():
        weight.grad = torch.zeros_like(weight)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step, state.window, state.history = 3, {"loss": 0.5, "count": 1.0}, [{"step": 2.0, "loss": 0.5}]
    with TemporaryDirectory() as folder:
        return [save_state(Path(folder), SavedState(state.tensors(), state.values())).read_bytes()]


def repair(data: bytes) -> bytes:
    """Correct the checksum."""
    content = data[:-CHECKSUM_BYTES]
    return content + sha256(f"{FILE}\n".encode() + content).digest()


def parse(path: Path) -> None:
    """Restore it as the newest state of a training."""
    folder = path.parent / "training"
    folder.mkdir()
    path.rename(folder / FILE)
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        if not RunDir(folder, "key").restore(_state()):
            raise DiffctlError(str(messages[0].message).replace(str(folder), ""))
    _state().pop_means()
