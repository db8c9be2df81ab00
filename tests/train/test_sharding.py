"""Sharded trainings: equal to one process to rounding, and resumed with any number of ranks."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diffusion.images.store import open_store
from diffusion.train.checkpoint.run_dir import restore_state
from diffusion.train.checkpoint.state_files import newest_state, save_state, state_files
from diffusion.train.distributed.process_group import ProcessGroup, join_group
from diffusion.train.distributed.sharding import Shards, meta_copy, with_parameters
from diffusion.train.optimizers import make_optimizer
from diffusion.train.train_step import TrainState, ema_copy, new_state
from diffusion.train.trainer import share_state
from tests.helpers.process_pair import (
    CHANGES,
    DEADLINE,
    SHARDED,
    SMALL_DIT,
    Job,
    alone,
    assert_close,
    pair_of,
    trained_in_turn,
)
from tests.helpers.trainings import CPU, plan_of
from tests.train.test_state_files import equal


@given(count=st.integers(1, 20), columns=st.integers(1, 3), world=st.integers(2, 7))
def test_shards_partition_the_rows_in_order(count, columns, world):
    whole = torch.arange(count * columns).view(count, columns)
    network = nn.Linear(1, 1)
    groups = [ProcessGroup(CPU, rank, world) for rank in range(world)]
    shards = [Shards(network, network, network, group).rows(whole) for group in groups]
    assert torch.equal(torch.cat(shards), whole)
    assert all(len(shard) <= -(-count // world) for shard in shards)


def test_a_saved_state_is_loaded_as_rows_and_other_sizes_are_refused_on_all_ranks(store):
    """Rank 0 could not distinguish seven rows from eight."""
    state = stepped(new_state(plan_of(store, **SHARDED), CPU))
    saved, bare = state.saved(), meta_copy(state.network)
    name = next(name for name in saved.tensors if name.startswith("optimizer.") and name.endswith(".exp_avg"))
    foreign = saved._replace(tensors={**saved.tensors, name: torch.ones(3, 3)})
    found = []
    for rank in range(2):
        shards = Shards(state.network, state.network, bare, ProcessGroup(CPU, rank, 2))
        local = with_parameters(
            bare, (shards.rows(weight.detach() * 0) for weight in state.network.parameters())
        )
        optimizer = make_optimizer(state.plan.train, local, [{"params": list(local.parameters())}])
        profiles = nn.ModuleList([ema_copy(local)])
        parts = local, ema_copy(local), optimizer, state.time_sampler, profiles, shards
        resumed = TrainState(state.plan, *parts, code=list(state.plan.code))
        resumed.restore(saved)
        found.append(resumed.tensors())
        with pytest.raises(ValueError, match=rf"{re.escape(name)} has shape"):
            resumed.restore(foreign)
    assert found[0].keys() == found[1].keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        both = found[0][name] if tensor.ndim == 0 else torch.cat([rows[name] for rows in found])
        assert torch.equal(both, tensor), name


def stepped(state: TrainState) -> TrainState:
    """Return the state after an optimiser step, with moments."""
    for weight in state.network.parameters():
        weight.grad = torch.ones_like(weight)
    state.optimizer.step()
    state.step = 1
    return state


@pytest.mark.slow
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
    shutil.copy(state_files(tmp_path / "sharded/parts")[0], half)
    resumed, other = trained_in_turn(digits_store, 2, [Job(half, SHARDED, 3), Job(tmp_path / "dit", dit)])
    assert resumed.values.step == 3
    assert_close(alone(digits_store, CHANGES, resumed), wanted)
    assert_close(other, alone(digits_store, {**dit, "train": CHANGES["train"]}))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_no_rank_holds_the_full_state_during_a_sharded_resume(digits_store: Path, tmp_path: Path) -> None:
    """Each holds half of it, and the full weights, a quarter, while it is built."""
    state = stepped(new_state(plan_of(open_store(digits_store), **LARGE), CPU))
    save_state(tmp_path, state.saved())
    size = sum(tensor.nbytes for tensor in state.tensors().values())
    assert size > 200e6
    with pair_of(SCRIPT, str(digits_store), str(tmp_path)) as pair:
        grown = [int(process.communicate(timeout=DEADLINE)[0]) for process in pair]
    assert 0.4 * size < max(grown) < 0.75 * size, grown


SELF = Path("/proc/self")
LARGE: dict[str, Any] = {"model": {"channels": 96, "channel_mult": [1, 2], "num_res_blocks": 3}}
SCRIPT = "from tests.train.test_sharding import main; main()"


def memory(name: str) -> int:
    """Return the bytes of that field of this process's status."""
    found = re.search(rf"{name}:\s+(\d+) kB", (SELF / "status").read_text())
    assert found
    return 1024 * int(found[1])


def main() -> None:
    """Begin a small training, which loads the libraries, and print what a large one adds to the memory."""
    torch.set_num_threads(1)
    rank, port, images, folder = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    store, group = open_store(Path(images)), ProcessGroup(torch.device("cpu"), rank, 2)
    plan = plan_of(store, **LARGE, train={"batch_size": 2, "shard": True})
    with join_group(group, dist.TCPStore("127.0.0.1", port, 2, is_master=False)):
        new_state(plan_of(store, **SHARDED), group.device, group=group)
        (SELF / "clear_refs").write_text("5")  # reset the peak memory
        before = memory("VmRSS")
        state = new_state(plan, group.device, group=group)
        newest = newest_state(Path(folder)) if group.is_rank_zero else None
        restore_state(state, share_state(state, group, newest), "the state")
        assert state.step == 1
        print(memory("VmHWM") - before)
