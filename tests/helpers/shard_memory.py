"""One of two processes that resume a large training and report the growth of their memory."""

import re
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from diffusion.images.store import open_store
from diffusion.train.checkpoint.run_dir import restore_state
from diffusion.train.checkpoint.state_files import newest_state
from diffusion.train.distributed.process_group import ProcessGroup, join_group
from diffusion.train.train_step import new_state
from diffusion.train.trainer import _share_state
from tests.helpers.sharded import SHARDED
from tests.helpers.trainings import plan_of

SELF = Path("/proc/self")
LARGE: dict[str, Any] = {"model": {"channels": 96, "channel_mult": [1, 2], "num_res_blocks": 3}}
SCRIPT = "from tests.helpers.shard_memory import main; main()"


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
