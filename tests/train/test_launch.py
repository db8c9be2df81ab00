"""The processes of a training: locks of GPUs, their ends, and work of rank 0 alone. No GPU is needed."""

import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from diffusion.system import devices
from diffusion.system.errors import UsageError
from diffusion.system.locks import file_lock, is_held
from diffusion.train.distributed import launch
from diffusion.train.distributed.launch import launch_ranks, process_count
from diffusion.train.train_config import TrainConfig
from tests.conftest import environment


def config(devices: int | str = "auto", batch_size: int = 8) -> TrainConfig:
    return TrainConfig(steps=1, batch_size=batch_size, lr=0.1, devices=devices)


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the lock files of three simulated GPUs."""
    monkeypatch.delenv(devices.DEVICE_VARIABLE)
    monkeypatch.setattr(devices, "LOCK_DIR", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    named = [SimpleNamespace(uuid=f"GPU-{letter}") for letter in "cab"]  # in another order than by number
    monkeypatch.setattr(torch.cuda, "get_device_properties", named.__getitem__)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(launch, "_started_workers", lambda group, store, command: nullcontext())
    return [tmp_path / f"{gpu.uuid}.lock" for gpu in named]


def held(gpus: list[Path]) -> list[int]:
    return [index for index, path in enumerate(gpus) if is_held(path)]


def test_a_training_locks_the_first_free_gpu(gpus: list[Path]) -> None:
    with launch_ranks(config(1), []) as first, launch_ranks(config(1), []) as second:
        assert (first.device, second.device) == (torch.device("cuda", 0), torch.device("cuda", 1))
        assert held(gpus) == [0, 1]
        with devices.acquire_device() as device:  # a sweep's
            assert device == torch.device("cuda", 2)
    assert held(gpus) == []


@pytest.mark.usefixtures("gpus")
def test_a_rank_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(UsageError, match="LOCAL_RANK is 3, and this process sees 3 GPUs"):
        launch._rank_device(4)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_training_waits_for_locked_gpus_and_reports_it_once(gpus: list[Path], count: int) -> None:
    others = [file_lock(path) for path in (gpus if count == 1 else gpus[1:2])]
    for other in others:
        other.__enter__()
    messages, rounds = [], []

    def check() -> None:
        rounds.append(1)
        if len(rounds) == 2:
            for other in others:
                other.__exit__(None, None, None)

    with launch_ranks(config(count), [], messages.append, check) as group:
        assert (group.device, group.world_size) == (torch.device("cuda", 0), count)
        assert held(gpus) == list(range(count))
    assert held(gpus) == []
    assert messages == ["all GPUs are busy with another sweep or training: waiting for one"]
    assert len(rounds) == 2


def test_auto_starts_no_process_without_an_image(gpus: list[Path]) -> None:
    assert [process_count(config("auto", size)) for size in (1, 2, 3, 8)] == [1, 2, 3, 3]
    with pytest.raises(UsageError, match="there are 3 GPUs"):
        process_count(config(4))
    with pytest.raises(UsageError, match="batch_size 2 is less than the 3"), launch_ranks(config(3, 2), []):
        pass
    assert held(gpus) == []


def test_a_worker_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.1)
    over = threading.Event()
    others = launch._Workers(2, ["sleep", "600"], 0, over)
    others.stop()
    assert [process.returncode for process in others._running] == [-signal.SIGKILL]


# Two ranks over gloo with a timeout of one second: rank 0 works for several, and the other one waits at the
# store, then in a collective.
PAIR = """
import sys, time
from datetime import timedelta
import torch, torch.distributed as dist
from diffusion.train.distributed import process_group
from diffusion.train.distributed.process_group import ProcessGroup, join_group

process_group.COLLECTIVE_TIMEOUT = timedelta(seconds=1)
rank, port = int(sys.argv[1]), int(sys.argv[2])
store = dist.TCPStore("127.0.0.1", port, 2, is_master=False)
store.set(f"started/{rank}", "")
store.wait(["started/0", "started/1"])  # one may take seconds longer to import torch
groups = [ProcessGroup(torch.device("cpu"), rank, 2, store=one) for one in (store, None)]
numbers = [torch.ones(3)]
try:
    with join_group(groups[0], store):
        groups[0].all_reduce(numbers)
        for group in groups:
            with process_group.rank_zero_first(group, "step 1"):
                time.sleep(0 if rank else 3)
            group.all_reduce(numbers)
            print(numbers[0].tolist())
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.slow
def test_rank_zero_may_work_longer_than_the_timeout_of_a_collective():
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    lines = [[sys.executable, "-c", PAIR, str(rank), str(store.port)] for rank in range(2)]
    pair = [subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, text=True) for line in lines]
    outputs = [one.communicate(timeout=120)[0].split("\n") for one in pair]
    assert outputs == [["[4.0, 4.0, 4.0]", "RankFailed", ""]] * 2
