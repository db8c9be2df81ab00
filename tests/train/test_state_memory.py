"""The part of a saved state that is in memory at a time during a restore: counted, not measured."""

import weakref
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from diffusion.config import parse
from diffusion.system import checksums
from diffusion.system.checksums import Corrupted, open_checksummed, write_checksummed
from diffusion.train.checkpoint import state_files
from diffusion.train.checkpoint.state_files import LazyTensors, meta_tensors, newest_state, save_state
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.plan import DenoiserPlan, plan_training
from diffusion.train.train_step import TrainState, new_state
from tests.conftest import params
from tests.helpers.trainings import CPU, assert_same

SHAPE = {"channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
DATA = {"name": "digits", "classes": ["0"], "counts": [6], "image_size": 8, "channels": 1, "digest": ""}


@cache
def small_plan() -> DenoiserPlan:
    return plan_training(parse(params(model=SHAPE), "here"), DATA, CPU)


class Held:
    """The peak number of bytes of the tensors that were added and still exist."""

    def __init__(self) -> None:
        self.now = self.most = self.count = 0

    def add(self, tensor: Tensor) -> Tensor:
        self.now += tensor.nbytes
        self.most, self.count = max(self.most, self.now), self.count + 1
        weakref.finalize(tensor, self._let_go, tensor.nbytes)
        return tensor

    def _let_go(self, size: int) -> None:
        self.now -= size


@pytest.fixture
def trained() -> Iterator[TrainState]:
    """Return a training with moments, different from any new one."""
    state = new_state(small_plan(), CPU)
    for number, weight in enumerate(state.network.parameters(), start=1):
        weight.grad = torch.full_like(weight, number)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step = 3
    return state


def fresh() -> TrainState:
    return new_state(small_plan(), CPU)


def most(state: TrainState) -> int:
    """Return the bytes of the two largest tensors: a loop holds one while it loads the next."""
    return sum(sorted(tensor.nbytes for tensor in state.tensors().values())[-2:])


def test_a_state_file_is_loaded_one_tensor_at_a_time(
    tmp_path: Path, trained: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(tmp_path, trained.saved())
    held, again, stored = Held(), fresh(), state_files.stored_tensors

    def counted(file: IO[bytes], size: int) -> LazyTensors:
        source = stored(file, size)
        return LazyTensors(source.meta, lambda name: held.add(source[name]))

    monkeypatch.setattr(state_files, "stored_tensors", counted)
    saved = newest_state(tmp_path)
    assert saved is not None
    assert saved.tensors.keys() == trained.tensors().keys()
    assert held.count == 1, "only the counters are loaded"
    again.restore(saved)
    assert_same(again, trained)
    assert held.count == 1 + len(saved.tensors)
    assert held.now == 0
    assert held.most <= most(trained)


def test_another_rank_receives_one_tensor_at_a_time(
    trained: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensors that rank 0 would send are in a list."""
    saved, sent = trained.saved(), iter(trained.tensors().values())
    meta, held, follower = meta_tensors(saved.tensors), Held(), fresh()

    def receive(values: list[object], source: int) -> None:
        values[:] = [("same", meta, saved.values)]

    monkeypatch.setattr(dist, "broadcast_object_list", receive)
    monkeypatch.setattr(dist, "broadcast", lambda tensor, source: held.add(tensor).copy_(next(sent)))
    shared = ProcessGroup(CPU, 1, 2).broadcast_state("same", None)
    assert shared is not None
    follower.restore(shared)
    assert_same(follower, trained)
    assert next(sent, None) is None
    assert held.most <= most(trained)


def test_a_checksum_is_verified_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the file ends with or within a block."""
    monkeypatch.setattr(checksums, "BLOCK", 8)
    for size in (0, 1, 7, 8, 9, 16, 100):
        path, content = tmp_path / f"a{size}", bytes(range(size))
        write_checksummed(path, lambda file, content=content: file.write(content))
        file, length = open_checksummed(path)
        with file:
            assert (length, file.read(length)) == (size, content)
        whole = path.read_bytes()
        for damaged in (whole[:-1], whole + b"x", bytes([whole[0] ^ 1]) + whole[1:], whole[:5]):
            path.write_bytes(damaged)
            with pytest.raises(Corrupted):
                open_checksummed(path)
