"""Selection of devices, automatically or by name, and their private lock folder. No GPU is needed."""

import os
from pathlib import Path

import pytest
import torch

from diffusion.system import devices
from diffusion.system.devices import (
    DEVICE_VARIABLE,
    acquire_device,
    acquire_gpus,
    default_device,
    float64_device,
)
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.locks import is_held
from diffusion.train.distributed.launch import process_count
from diffusion.train.plan import resolve_precision
from diffusion.train.train_config import TrainConfig


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Simulated GPUs: none by default."""
    found = {"cuda": False, "mps": False}
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    monkeypatch.setattr(devices, "LOCK_DIR", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found["cuda"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: found["mps"])
    return found


@pytest.mark.parametrize(
    ("cuda", "mps", "named", "taken"),
    [
        (False, False, None, "cpu"),
        (True, False, None, "cuda"),
        (False, True, None, "mps"),
        (True, True, None, "cuda"),
        (True, True, "mps", "mps"),
        (True, True, "cpu", "cpu"),
        (False, True, "cuda", None),
        (True, True, "gpu", None),
    ],
)
def test_best_or_named_device_is_selected(there, monkeypatch, cuda, mps, named, taken):
    there.update(cuda=cuda, mps=mps)
    if named:
        monkeypatch.setenv(DEVICE_VARIABLE, named)
    if taken is None:
        with pytest.raises(UsageError, match=f"DIFFCTL_DEVICE is {named}, .* has .*mps and cpu: unset it"):
            default_device()
        return
    assert default_device().type == taken
    if taken == "cpu":
        with acquire_device() as device, acquire_gpus(2):
            assert device == torch.device("cpu")
        assert process_count(TrainConfig(steps=1, batch_size=4, lr=0.1)) == 1


def test_apple_gpu_is_exclusive_and_not_used_for_scores(there, tmp_path):
    there["mps"] = True
    with acquire_device() as device:
        assert device == torch.device("mps")
        assert is_held(tmp_path / "mps.lock")
        with acquire_gpus(1):  # distributed training uses the CPU here
            pass
    assert float64_device(default_device()) == torch.device("cpu")
    assert process_count(TrainConfig(steps=10_000, batch_size=4, lr=0.1)) == 1
    assert resolve_precision("auto", device) == "fp32"
    assert resolve_precision("bf16", device) == "bf16"


def anothers(path: Path) -> None:
    if os.getuid():
        pytest.skip("only root can make a folder that is another user's")
    path.mkdir(0o700)
    os.chown(path, 65534, 65534)


@pytest.mark.parametrize(
    "plant", [lambda path: path.symlink_to("."), anothers], ids=["link", "another user's"]
)
def test_lock_folder_of_others_is_refused(tmp_path, monkeypatch, plant) -> None:
    monkeypatch.setattr(devices, "LOCK_DIR", tmp_path / "locks")
    plant(tmp_path / "locks")
    with pytest.raises(DiffctlError, match="locks is not a folder of this user"), devices.acquire_lock(["a"]):
        pass
    assert not list(tmp_path.rglob("*.lock"))
