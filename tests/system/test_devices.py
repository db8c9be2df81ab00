"""Selection of devices, automatically or by name, and their private lock folder. No GPU is needed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffusion.system import devices
from diffusion.system.devices import (
    DEVICE_VARIABLE,
    acquire_device,
    acquire_gpus,
    default_device,
    device_kind,
    float64_device,
)
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.locks import is_held
from diffusion.train.distributed.launch import process_count
from diffusion.train.gradients import should_compile
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
    ("cuda", "mps", "taken"),
    [(False, False, "cpu"), (True, False, "cuda"), (False, True, "mps"), (True, True, "cuda")],
)
def test_best_device_is_selected(there, cuda, mps, taken):
    there.update(cuda=cuda, mps=mps)
    assert device_kind() == default_device().type == taken


@pytest.mark.parametrize("named", ["cpu", "mps", "cuda"])
def test_device_is_selected_by_name(there, monkeypatch, named):
    there.update(cuda=True, mps=True)
    monkeypatch.setenv(DEVICE_VARIABLE, named)
    assert default_device() == torch.device(named)
    if named == "cpu":
        with acquire_device() as device, acquire_gpus(2):
            assert device == torch.device("cpu")
        assert process_count(TrainConfig(steps=1, batch_size=4, lr=0.1)) == 1


@pytest.mark.parametrize(
    ("named", "why"), [("gpu", "set one of cuda, mps, cpu"), ("mps", "has none: unset it")]
)
def test_unavailable_device_is_refused(there, monkeypatch, named, why):
    monkeypatch.setenv(DEVICE_VARIABLE, named)
    with pytest.raises(UsageError, match=f"DIFFCTL_DEVICE is {named}.*{why}"):
        default_device()


def test_apple_gpu_is_exclusive_and_not_used_for_scores(there, tmp_path):
    there["mps"] = True
    with acquire_device() as device:
        assert device == torch.device("mps")
        assert is_held(tmp_path / "mps.lock")
        with acquire_gpus(1):  # distributed training uses the CPU here
            pass
    assert float64_device(default_device()) == torch.device("cpu")
    train = TrainConfig(steps=10_000, batch_size=4, lr=0.1)
    assert process_count(train) == 1
    assert resolve_precision("auto", device) == "fp32"
    assert resolve_precision("bf16", device) == "bf16"
    assert not should_compile(train, device)


def anothers(path: Path) -> None:
    if os.getuid():
        pytest.skip("only root can make a folder that is another user's")
    path.mkdir(0o700)
    os.chown(path, 65534, 65534)


@pytest.mark.parametrize(
    "plant", [lambda path: path.symlink_to("."), anothers], ids=["link", "another user's"]
)
def test_lock_folder_of_others_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[Path], object]
) -> None:
    monkeypatch.setattr(devices, "LOCK_DIR", tmp_path / "locks")
    plant(tmp_path / "locks")
    with pytest.raises(DiffctlError, match="locks is not a folder of this user"), devices.acquire_lock(["a"]):
        pass
    assert not list(tmp_path.rglob("*.lock"))
