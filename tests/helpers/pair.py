"""Two processes that run a script as the two ranks of a training."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from tests.conftest import environment


@contextmanager
def pair_of(script: str, *arguments: str) -> Iterator[list["subprocess.Popen[str]"]]:
    """Both; argv has the rank, the port of a store that lives as long as the block, and the arguments."""
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    yield [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(store.port), *arguments],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
