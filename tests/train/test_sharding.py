"""Restored states, of which one tensor is in memory at a time; sharded trainings equal one process."""

import re
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffusion.train.checkpoint import state_files
from diffusion.train.checkpoint.state_files import LazyTensors, meta_tensors, newest_state, save_state
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.distributed.sharding import Shards, meta_copy, with_parameters
from diffusion.train.initial_state import make_optimizer, new_state
from diffusion.train.plan import TrainPlan
from diffusion.train.train_state import TrainState
from diffusion.train.train_step import ema_copy
from tests.helpers.process_pair import CHANGES, SHARDED, SMALL_DIT, Job, alone, assert_close, trained_in_turn
from tests.helpers.trainings import CPU, assert_same, plan_of
from tests.train.test_state_files import equal


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


def begun(plan: TrainPlan) -> TrainState:
    """Return a training with moments, different from any new one."""
    state = new_state(plan, CPU)
    for number, weight in enumerate(state.network.parameters(), start=1):
        weight.grad = torch.full_like(weight, number)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step = 3
    return state


def most(state: TrainState) -> int:
    """Return the bytes of the two largest tensors: a loop holds one while it loads the next."""
    return sum(sorted(tensor.nbytes for tensor in state.tensors().values())[-2:])


def test_a_state_file_is_loaded_one_tensor_at_a_time(store, tmp_path: Path, monkeypatch) -> None:
    trained = begun(plan_of(store))
    save_state(tmp_path, trained.saved())
    held, again, stored = Held(), new_state(trained.plan, CPU), state_files.stored_tensors

    def counted(file: IO[bytes], size: int) -> LazyTensors:
        source = stored(file, size)
        return LazyTensors(source.meta, lambda name: held.add(source[name]))

    monkeypatch.setattr(state_files, "stored_tensors", counted)
    saved = newest_state(tmp_path)
    assert saved is not None
    assert held.count == 1, "only the counters are loaded"
    again.restore(saved)
    assert_same(again, trained)
    assert held.count == 1 + len(saved.tensors)
    assert held.now == 0
    assert held.most <= most(trained)


def test_another_rank_receives_one_tensor_at_a_time(store, monkeypatch) -> None:
    """The tensors that rank 0 would send are in a list."""
    trained = begun(plan_of(store))
    saved, sent = trained.saved(), iter(trained.tensors().values())
    meta, held, follower = meta_tensors(saved.tensors), Held(), new_state(trained.plan, CPU)

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


def test_another_rank_receives_weights_that_are_channels_last(monkeypatch) -> None:
    """Gloo copies the bytes of the sent tensor, whatever the strides of the receiving one are."""
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    meta = meta_tensors({"weight": weight})

    def receive(values: list[object], source: int) -> None:
        values[:] = [("same", meta, "counters")]

    def copy_bytes(tensor: Tensor, source: int) -> None:
        tensor.untyped_storage().copy_(weight.contiguous().untyped_storage())

    monkeypatch.setattr(dist, "broadcast_object_list", receive)
    monkeypatch.setattr(dist, "broadcast", copy_bytes)
    shared = ProcessGroup(CPU, 1, 2).broadcast_state("same", None)
    assert shared is not None
    assert torch.equal(shared.tensors["weight"], weight)


def test_a_saved_state_is_loaded_as_rows_and_other_sizes_are_refused_on_all_ranks(store):
    """Rank 0 could not distinguish seven rows from eight. The tensors are loaded one at a time."""
    state = begun(plan_of(store, **SHARDED))
    saved, bare = state.saved(), meta_copy(state.network)
    name = next(name for name in saved.tensors if name.startswith("ema."))
    foreign = saved._replace(tensors={**saved.tensors, name: torch.ones(3, 3)})
    found = []
    for rank in range(2):
        shards = Shards(state.network, state.network, bare, ProcessGroup(CPU, rank, 2))
        local = with_parameters(
            bare, (shards.rows(weight.detach() * 0) for weight in state.network.parameters())
        )
        optimizer = make_optimizer(state.plan.train, local, [{"params": list(local.parameters())}])
        profiles = nn.ModuleList([ema_copy(local)])
        own = state.time_sampler, state.objective, state.ema_objective
        parts = local, ema_copy(local), optimizer, *own, profiles, shards
        resumed = TrainState(state.plan, *parts, code=list(state.plan.code))
        held = Held()
        lazy = LazyTensors(saved.tensors, lambda name, held=held: held.add(saved.tensors[name].clone()))
        resumed.restore(saved._replace(tensors=lazy))
        assert held.now == 0
        assert held.most <= most(state)
        found.append(resumed.tensors())
        with pytest.raises(ValueError, match=rf"{re.escape(name)} has shape"):
            resumed.restore(foreign)
    assert found[0].keys() == found[1].keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        both = found[0][name] if tensor.ndim == 0 else torch.cat([rows[name] for rows in found])
        assert torch.equal(both, tensor), name


@pytest.mark.slow
@pytest.mark.long
def test_ranks_train_like_one_process_and_resume_bitwise_equal(digits_store, tmp_path):
    """With three ranks and many buckets, where the order of summation matters, and tensors of one row.

    Also with EMA profiles, dropout, gradient checkpointing and unequal micro-batches. A sharded state resumes
    with any number of ranks.
    """
    three = {"unsharded": CHANGES, "sharded": SHARDED}
    jobs = [
        Job(tmp_path / name / folder, changes, stop)
        for name, changes in three.items()
        for folder, stop in (("whole", None), ("parts", 2), ("parts", None))
    ]
    found = trained_in_turn(digits_store, 3, jobs)
    wanted = alone(digits_store)
    for whole, resumed in (found[:2], found[3:5]):
        assert_close(whole, wanted)
        assert equal(resumed, whole)
    half, dit = tmp_path / "half", {**SHARDED, "model": {**SHARDED["model"], **SMALL_DIT}}
    half.mkdir()
    shutil.copy(state_files.state_files(tmp_path / "sharded/parts")[0], half)
    resumed, other = trained_in_turn(digits_store, 2, [Job(half, SHARDED, 3), Job(tmp_path / "dit", dit)])
    assert resumed.values.step == 3
    assert_close(alone(digits_store, CHANGES, resumed), wanted)
    assert_close(other, alone(digits_store, {**dit, "train": CHANGES["train"]}))


def test_a_gathered_network_is_on_the_device_with_its_buffers():
    class Whole(Shards):
        def gather(self, shard: Tensor, size: torch.Size) -> Tensor:
            return shard

    network = nn.BatchNorm2d(3)
    group = SimpleNamespace(device=torch.device("meta"), is_rank_zero=True)
    full = Whole(network, network, meta_copy(network), group).gather_network(network)
    assert {one.device.type for one in (*full.parameters(), *full.buffers())} == {"meta"}
