"""The processes of a training: which GPUs they hold, and that each of them ends. No GPU is needed."""

import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffusion.system import devices
from diffusion.system.errors import Interrupted, UsageError
from diffusion.system.locks import file_lock, is_held
from diffusion.train.distributed import launch
from diffusion.train.distributed.launch import launch_ranks, process_count
from diffusion.train.train_config import TrainConfig
from tests.conftest import environment


def config(devices: int | str = "auto", batch_size: int = 8) -> TrainConfig:
    return TrainConfig(steps=1, batch_size=batch_size, lr=0.1, devices=devices)


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The lock files of three GPUs, which this machine seems to have; nothing runs on them."""
    monkeypatch.setattr(devices, "LOCK_DIR", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    named = [SimpleNamespace(uuid=f"GPU-{letter}") for letter in "cab"]  # in another order than by number
    monkeypatch.setattr(torch.cuda, "get_device_properties", named.__getitem__)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(launch, "_started", lambda first, store, command: nullcontext())
    return [tmp_path / f"{gpu.uuid}.lock" for gpu in named]


def held(gpus: list[Path]) -> list[int]:
    return [index for index, path in enumerate(gpus) if is_held(path)]


def test_a_training_holds_the_first_free_gpu(gpus: list[Path]) -> None:
    with launch_ranks(config(1), []) as first, launch_ranks(config(1), []) as second:
        assert (first.device, second.device) == (torch.device("cuda", 0), torch.device("cuda", 1))
        assert held(gpus) == [0, 1]
        with devices.acquire_device() as device:  # a sweep's
            assert device == torch.device("cuda", 2)
    assert held(gpus) == []


@pytest.mark.parametrize("count", [2, 3])
def test_the_first_process_holds_the_gpus_of_all(gpus: list[Path], count: int) -> None:
    with launch_ranks(config(count), []) as group:
        assert (group.device, group.world_size) == (torch.device("cuda", 0), count)
        assert held(gpus) == list(range(count))
    assert held(gpus) == []


@pytest.mark.parametrize(("rank", "expected"), [(0, [0, 1]), (1, [])])
def test_of_processes_that_torchrun_starts_the_first_of_a_machine_holds_its_gpus(
    gpus: list[Path], monkeypatch: pytest.MonkeyPatch, rank: int, expected: list[int]
) -> None:
    for name, value in (("WORLD_SIZE", 4), ("LOCAL_WORLD_SIZE", 2), ("RANK", 2 + rank), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, str(value))
    store = SimpleNamespace(set=lambda key, value: None)
    monkeypatch.setattr(launch, "rendezvous", lambda url: iter([(store, 2 + rank, 4)]))
    monkeypatch.setattr(launch, "join_group", lambda group, store: nullcontext())
    monkeypatch.setattr(launch, "_die_with_parent", lambda: None)
    with launch_ranks(config(), []) as group:
        assert (group.device, group.rank, group.world_size) == (torch.device("cuda", rank), 2 + rank, 4)
        assert held(gpus) == expected


@pytest.mark.parametrize("count", [1, 2])
def test_a_training_whose_gpus_are_held_says_so_once_and_waits(gpus: list[Path], count: int) -> None:
    others = [file_lock(path) for path in (gpus if count == 1 else gpus[1:2])]
    for other in others:
        other.__enter__()
    told, rounds = [], []

    def check() -> None:
        rounds.append(1)
        if len(rounds) == 2:
            for other in others:
                other.__exit__(None, None, None)

    with launch_ranks(config(count), [], told.append, check):
        assert 1 in held(gpus) or count == 1
    assert told == ["all GPUs are busy with another sweep or training: waiting for one"]
    assert len(rounds) == 2


def test_who_waits_for_a_gpu_can_be_stopped(gpus: list[Path]) -> None:
    def stop() -> None:
        raise Interrupted("stopped by SIGINT", signal.SIGINT)

    with file_lock(gpus[1]), pytest.raises(Interrupted), launch_ranks(config(2), [], None, stop):
        pass
    assert held(gpus) == []


def test_the_cpu_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(devices, "LOCK_DIR", tmp_path)
    with launch_ranks(config(), []) as first, launch_ranks(config(), []) as second:
        assert first.device == second.device == torch.device("cpu")
    assert list(tmp_path.iterdir()) == []


def test_auto_starts_no_process_without_an_image(gpus: list[Path]) -> None:
    assert [process_count(config("auto", size)) for size in (1, 2, 3, 8)] == [1, 2, 3, 3]
    with pytest.raises(UsageError, match="4 are asked for, and there are 3 GPUs"):
        process_count(config(4))
    with pytest.raises(UsageError, match="batch_size 2 is less than the 3"), launch_ranks(config(3, 2), []):
        pass
    assert held(gpus) == []


def test_a_process_that_does_not_end_with_a_finished_training_fails_nothing(monkeypatch):
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.1)
    over = threading.Event()
    others = launch._Workers(2, ["sleep", "600"], 0, over)
    others.wait()
    others.end()
    assert [process.returncode for process in others._running] == [-signal.SIGKILL]


BLOCKED_END = """
import atexit, threading
from diffusion.train.distributed import launch
from diffusion.train.distributed.process_group import ProcessGroup
ProcessGroup.loss_blocks = True
atexit.register(threading.Event().wait)  # as Python's own way out would
launch._end_blocked(ProcessGroup("cpu"), 75)
print("said", end="")
"""


def test_a_process_whose_device_is_blocked_ends_all_the_same_when_it_has_said_why():
    line = [sys.executable, "-c", BLOCKED_END]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, timeout=120, env=environment())
    assert (done.returncode, done.stdout) == (75, "said")


BLOCKED_THREAD = """
import sys, threading
from diffusion.train.distributed import launch
from diffusion.train.distributed.process_group import ProcessGroup
ProcessGroup.loss_blocks = True
group = ProcessGroup("cpu", int(sys.argv[1]), 2)
launch._end_after_loss(group, 75, 0.1)
threading.Thread(target=threading.Event().wait).start()  # which is waited for at the end
group.lost.set()
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_thread_that_never_comes_back_from_a_blocked_device_holds_up_no_end(rank):
    line = [sys.executable, "-c", BLOCKED_THREAD, str(rank)]
    done = subprocess.run(line, stderr=subprocess.PIPE, text=True, timeout=120, env=environment())
    said = (
        "diffctl: another process of this training is lost: the same command goes on from the saved state\n"
    )
    assert (done.returncode, done.stderr) == (75, "" if rank else said)
