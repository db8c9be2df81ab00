"""Sample shards on Ray workers: on every device of this machine, or on a cluster (`sample.runner: ray`).

The model's file goes once to each node through Ray's object store, and the images come back through it, so
the machines share no files. A dead worker costs only its current shard.
"""

import copy
import functools
import tempfile
import uuid
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.code_digest import library_version
from diffusion.protocol.sample_sections import SampleConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.system.files import sha256_file
from diffusion.system.signals import stop_request
from flows.ray.ray_session import (
    RETRIES,
    check_worker_version,
    get_result,
    ray_session,
    resolve_gpus,
)

if TYPE_CHECKING:
    import torch

    from diffusion.images.store import Images
    from diffusion.model.model_file import LoadedModel
    from diffusion.sample.cell_images import ShardRunner

SHARDS_PER_WORKER = 2  # one running, one queued
POLL_SECONDS = 0.5


@contextmanager
def ray_runner(config: SampleConfig) -> "Iterator[ShardRunner]":
    """Yield a ShardRunner; a local Ray ends with the block.

    Raise UsageError if Ray is missing or has too few GPUs, DiffctlError if the cluster does not answer.
    """
    with ray_session(config.address, "sample.runner ray needs Ray: pip install 'diffctl[ray]'"):
        gpus = resolve_gpus(config.num_gpus, "sample.num_gpus", "shard")
        yield functools.partial(_run, gpus, uuid.uuid4().hex, {})


def _run(
    gpus: float,
    sweep: str,
    shared: dict[str, Any],
    model: Path,
    settings: SampleSettings,
    shards: Sequence[range],
) -> "Generator[tuple[range, Images], None, None]":
    """Yield each shard with its images as they finish; raise DiffctlError if one fails.

    `sweep` identifies this sweep; `shared` has the models in the object store by SHA-256.
    """
    import numpy as np
    import ray

    sha256 = sha256_file(model)
    if sha256 not in shared:
        shared[sha256] = ray.put(np.fromfile(model, dtype=np.uint8))
    make = ray.remote(make_shard).options(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)
    same = shared[sha256], sha256, library_version(), settings, gpus, sweep
    waiting = deque(shards)
    running: dict[Any, range] = {}
    try:
        with stop_request() as stop:  # Ray may swallow an exception of a signal handler
            while waiting or running:
                while waiting and len(running) < _max_running(gpus):
                    shard = waiting.popleft()
                    running[make.remote(*same, shard)] = shard
                ready = ray.wait(list(running), timeout=POLL_SECONDS)[0]
                for reference in ready:
                    shard = running.pop(reference)
                    yield shard, get_result(reference, f"images {shard.start} to {shard.stop - 1}")
                stop.raise_if_set()
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _max_running(gpus: float) -> int:
    """Return how many shards may be submitted: enough for every worker, and bounded memory."""
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    workers = resources.get("GPU", 0) / gpus if gpus else resources.get("CPU", 1)
    return SHARDS_PER_WORKER * max(1, int(workers))


# The functions below run on a worker.


def make_shard(
    weights: Any, sha256: str, version: str, settings: SampleSettings, gpus: float, sweep: str, shard: range
) -> "Images":
    """Return a shard's images; raise DiffctlError if diffctl or torch differ from the driver's."""
    import torch

    from diffusion.sample.cell_images import shard_images

    check_worker_version(version)
    with _device(gpus, sweep) as device:
        loaded = _loaded(weights, sha256)
        if device.type != "cuda":
            return shard_images(loaded, settings, shard, device)
        moved = loaded._replace(network=copy.deepcopy(loaded.network))  # keeps no rounded copy alive
        try:
            moved.network.to(device)
            return shard_images(moved, settings, shard, device)
        finally:  # the worker outlives its shard, and Ray may give the GPU to another worker next
            moved.network.to("cpu")
            torch.cuda.empty_cache()


def _device(gpus: float, sweep: str) -> "AbstractContextManager[torch.device]":
    """Yield a device; a GPU is locked against other sweeps, fractions of it shared by this one."""
    import torch

    from diffusion.system.devices import acquire_device

    return acquire_device(group=sweep if gpus < 1 else None) if gpus else nullcontext(torch.device("cpu"))


_models: "dict[str, LoadedModel]" = {}  # the worker's last model, in host memory


def _loaded(weights: Any, sha256: str) -> "LoadedModel":
    from diffusion.model.model_file import load_model

    if sha256 not in _models:
        _models.clear()
        with tempfile.NamedTemporaryFile() as file:
            file.write(weights.data)
            file.flush()
            _models[sha256] = load_model(Path(file.name))
    return _models[sha256]
