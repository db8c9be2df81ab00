"""Sharded trainings: equal to one process to rounding, and resumed with any number of ranks."""

import re
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
from diffusion.train.checkpoint.state_files import SavedState, newest_state, save_state
from diffusion.train.distributed.process_group import ProcessGroup, join_group
from diffusion.train.distributed.sharding import Shards, _meta_copy, _with_parameters, shard_rows
from diffusion.train.train_step import new_state
from diffusion.train.trainer import _share_state
from tests.helpers.process_pair import (
    CHANGES,
    DEADLINE,
    SHARDED,
    SMALL_DIT,
    alone,
    assert_close,
    pair_of,
    trained,
)
from tests.helpers.training_process import prepare, train_to_the_end, uninterrupted
from tests.helpers.trainings import plan_of
from tests.train.test_process_group import TRAIN, assert_same_curve, curve, ended, set_devices, training_at

CPU = torch.device("cpu")


def assert_same_bits(ours: SavedState, theirs: SavedState) -> None:
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)
    assert ours.values == theirs.values


@given(count=st.integers(1, 20), columns=st.integers(1, 3), world=st.integers(2, 7))
def test_shards_partition_the_rows_in_order(count, columns, world):
    whole = torch.arange(count * columns).view(count, columns)
    network = nn.Linear(1, 1)
    shards = [shard_rows(whole, ProcessGroup(CPU, rank, world)) for rank in range(world)]
    assert torch.equal(torch.cat(shards), whole)
    assert all(len(shard) <= -(-count // world) for shard in shards)
    filled = _with_parameters(_meta_copy(network), [torch.ones(1, 1), torch.zeros(1)])
    assert filled.weight.item() == 1.0


def test_a_saved_state_is_loaded_as_rows_and_other_sizes_are_refused_on_all_ranks(digits_store):
    """Rank 0 could not distinguish seven rows from eight."""
    state = new_state(plan_of(open_store(digits_store), **SHARDED), CPU)
    for weight in state.network.parameters():
        weight.grad = torch.ones_like(weight)
    state.optimizer.step()
    saved, bare = state.saved(), _meta_copy(state.network)
    name = next(name for name in saved.tensors if name.startswith("optimizer.") and name.endswith(".exp_avg"))
    foreign = saved._replace(tensors={**saved.tensors, name: torch.ones(3, 3)})
    found = []
    for rank in range(2):
        shards = Shards(state.network, state.network, bare, ProcessGroup(CPU, rank, 2))
        found.append(dict(shards.shard_state(state, saved).tensors))
        with pytest.raises(ValueError, match=rf"{re.escape(name)} has shape"):
            shards.shard_state(state, foreign)
    assert found[0].keys() == found[1].keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        whole = tensor.ndim == 0 or name.startswith("timesteps.")
        both = found[0][name] if whole else torch.cat([shard_rows[name] for shard_rows in found])
        assert torch.equal(both, tensor), name


@pytest.mark.slow
@pytest.mark.parametrize(("world", "model"), [(2, {}), (3, {}), (2, SMALL_DIT)], ids=["2", "3", "dit"])
def test_shards_train_like_one_process(digits_store, tmp_path, world, model):
    """With EMA profiles, dropout, gradient checkpointing, unequal micro-batches and tensors of one row."""
    changes = {**SHARDED, "model": {**SHARDED["model"], **model}}
    sharded = trained(digits_store, tmp_path / "runs", world, changes)
    assert_close(sharded, alone(digits_store, {**changes, "train": CHANGES["train"]}))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [CHANGES, SHARDED], ids=["whole", "shards"])
def test_resume_of_three_ranks_is_bitwise_equal(digits_store, tmp_path, changes):
    """With many buckets and three ranks, where the order of summation matters."""
    whole = trained(digits_store, tmp_path / "whole", 3, changes)
    trained(digits_store, tmp_path / "parts", 3, changes, stop=2)
    assert_same_bits(trained(digits_store, tmp_path / "parts", 3, changes), whole)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("shard", [True, False], ids=["shards", "whole"])
def test_no_rank_holds_the_full_state_during_a_sharded_resume(
    digits_store: Path, tmp_path: Path, shard: bool
) -> None:
    """Each holds half of it, and the full weights, a quarter, while it is built."""
    state = new_state(plan_of(open_store(digits_store), **LARGE), CPU)
    for weight in state.network.parameters():
        weight.grad = torch.ones_like(weight)
    state.optimizer.step()
    state.step = 1
    save_state(tmp_path, state.saved())
    size = sum(tensor.nbytes for tensor in state.tensors().values())
    assert size > 200e6
    with pair_of(SCRIPT, str(digits_store), str(tmp_path), str(shard)) as pair:
        grown = [int(process.communicate(timeout=DEADLINE)[0]) for process in pair]
    assert (max(grown) < 0.75 * size) == shard, grown


@pytest.mark.slow
def test_a_sharded_state_resumes_with_any_number_of_ranks(digits_store, tmp_path):
    trained(digits_store, tmp_path, 3, SHARDED, stop=1)
    trained(digits_store, tmp_path, 1, SHARDED, stop=2)
    trained(digits_store, tmp_path, 2, SHARDED, stop=3)
    assert_close(trained(digits_store, tmp_path, 2, CHANGES), alone(digits_store))


@pytest.fixture
def prepared(project: Path) -> Path:
    prepare(project, **TRAIN)
    return project


@pytest.mark.slow
def test_a_sharded_training_is_observed_stopped_and_resumed(prepared: Path) -> None:
    """Previews, validation losses and scores use gathered networks."""
    watched = {"steps": 40, "preview_every": 8, "val_every": 8}
    set_devices(prepared, 1, train=watched)
    uninterrupted(prepared)
    expected = curve(prepared)
    set_devices(prepared, 2, train={**watched, "shard": True})
    process, others = training_at(prepared, 9)
    process.terminate()
    assert "stopped by SIGTERM, saved" in ended(process, others)
    stderr = train_to_the_end(prepared).stderr
    assert "resuming after step" in stderr
    assert "the training continues without" not in stderr
    found = curve(prepared)
    assert_same_curve(found, expected)
    assert found[-1]["val_loss"] == pytest.approx(expected[-1]["val_loss"], rel=2e-3)
    assert list(prepared.glob("runs/train/*/previews/*.png"))


SELF = Path("/proc/self")
LARGE: dict[str, Any] = {"model": {"channels": 96, "channel_mult": [1, 2], "num_res_blocks": 3}}
SCRIPT = "from tests.train.test_sharding import main; main()"


def memory(name: str) -> int:
    """Bytes, by what Linux calls them in a process's status."""
    found = re.search(rf"{name}:\s+(\d+) kB", (SELF / "status").read_text())
    assert found
    return 1024 * int(found[1])


def main() -> None:
    """Begin a small training, which loads what is loaded once, and go on with a large one."""
    torch.set_num_threads(1)
    rank, port, images, folder, shard = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    store, group = open_store(Path(images)), ProcessGroup(torch.device("cpu"), rank, 2)
    plan = plan_of(store, **LARGE, train={"batch_size": 2, "shard": shard == "True"})
    with join_group(group, dist.TCPStore("127.0.0.1", port, 2, is_master=False)):
        new_state(plan_of(store, **SHARDED), group.device, group=group)
        (SELF / "clear_refs").write_text("5")  # reset the peak memory
        before = memory("VmRSS")
        state = new_state(plan, group.device, group=group)
        newest = newest_state(Path(folder)) if group.is_rank_zero else None
        assert restore_state(state, _share_state(state, group, newest), "the state")
        assert state.step == 1
        print(memory("VmHWM") - before)
