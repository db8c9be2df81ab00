"""Sample shards on Ray workers: on every device of this machine, or on a cluster (`sample.runner: ray`).

The model's file goes once to each node through Ray's object store, and the images come back through it, so
the machines share no files. A dead worker costs only its current shard.
"""

import copy
import functools
import socket
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
from diffusion.system.errors import DiffctlError, reason
from diffusion.system.files import sha256_file
from diffusion.system.signals import stop_request
from flows.ray.ray_session import first_line, ray_session, resolve_gpus

if TYPE_CHECKING:
    import torch

    from diffusion.images.store import Images
    from diffusion.model.model_file import LoadedModel
    from diffusion.sample.cell_images import ShardRunner

RETRIES = 3  # of a shard after its worker died
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
                    yield shard, _result(reference, shard)
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


def _result(reference: Any, shard: range) -> "Images":
    import ray

    try:
        images: Images = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, DiffctlError):
            raise cause from None
        raise DiffctlError(f"images {shard.start} to {shard.stop - 1} failed: {reason(cause)}") from None
    except ray.exceptions.RayError as error:
        raise DiffctlError(
            f"images {shard.start} to {shard.stop - 1} failed after {RETRIES} retries: {first_line(error)}"
        ) from None
    return images


# The functions below run on a worker.


def make_shard(
    weights: Any, sha256: str, version: str, settings: SampleSettings, gpus: float, sweep: str, shard: range
) -> "Images":
    """Return a shard's images; raise DiffctlError if diffctl or torch differ from the driver's."""
    from diffusion.sample.cell_images import shard_images

    if (own := library_version()) != version:
        raise DiffctlError(
            f"{socket.gethostname()} has another diffctl or torch than this machine ({own}, not {version}): "
            "install the same on both"
        )
    with _device(gpus, sweep) as device, _moved_to(device, _loaded(weights, sha256)) as loaded:
        return shard_images(loaded, settings, shard, device)


def _device(gpus: float, sweep: str) -> "AbstractContextManager[torch.device]":
    """Yield a device; a GPU is locked against other sweeps, fractions of it shared by this one."""
    import torch

    from diffusion.system.devices import acquire_device

    if not gpus:
        return nullcontext(torch.device("cpu"))
    return acquire_device(group=sweep if gpus < 1 else None)


@contextmanager
def _moved_to(device: "torch.device", loaded: "LoadedModel") -> "Iterator[LoadedModel]":
    """Move the model to the device for the block, then free the GPU's memory.

    A worker outlives its shard, and Ray may give the GPU to another worker next.
    """
    import torch

    if device.type != "cuda":
        yield loaded
        return
    moved = loaded._replace(network=copy.deepcopy(loaded.network))  # keeps no rounded copy alive
    try:
        moved.network.to(device)
        yield moved
    finally:
        moved.network.to("cpu")
        torch.cuda.empty_cache()


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
