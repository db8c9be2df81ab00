"""Sharded trainings: equal to one process to rounding, and resumed with any number of ranks."""

import re
import shutil

import pytest
import torch
from torch import nn

from diffusion.train.checkpoint.state_files import LazyTensors, state_files
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.distributed.sharding import Shards, meta_copy, with_parameters
from diffusion.train.optimizers import make_optimizer
from diffusion.train.train_step import TrainState, ema_copy, new_state
from tests.helpers.process_pair import (
    CHANGES,
    SHARDED,
    SMALL_DIT,
    Job,
    alone,
    assert_close,
    trained_in_turn,
)
from tests.helpers.trainings import CPU, plan_of
from tests.train.test_state_files import equal
from tests.train.test_state_memory import Held, most


def test_a_saved_state_is_loaded_as_rows_and_other_sizes_are_refused_on_all_ranks(store):
    """Rank 0 could not distinguish seven rows from eight. The tensors are loaded one at a time."""
    state = new_state(plan_of(store, **SHARDED), CPU)
    for weight in state.network.parameters():
        weight.grad = torch.ones_like(weight)
    state.optimizer.step()
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
