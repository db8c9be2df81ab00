"""Shards on Ray workers: on every device of this machine, or on a cluster (`sample.runner: ray`).

The model's file goes once to each node, through Ray's object store, and the images come back through it, so
the machines share no files. A worker that dies costs the shard that it was at.
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

RETRIES = 3  # of a shard whose worker died
AHEAD = 2  # shards a worker: one at work, one that waits
POLL_SECONDS = 0.5


@contextmanager
def ray_runner(config: SampleConfig) -> "Iterator[ShardRunner]":
    """A Runner of diffusion.sample.cell_images for the block; of a Ray begun for it nothing is left then.

    UsageError when Ray is not installed or has no such GPU; DiffctlError when the cluster does not answer.
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
    """Each shard with its images, in the order in which they are finished; DiffctlError when one fails.

    `sweep` names this sweep among all; `shared` keeps the models that are in the object store, by their
    SHA-256.
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
        with stop_request() as stop:  # an exception from a signal's handler may be lost inside Ray
            while waiting or running:
                while waiting and len(running) < _room(gpus):
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


def _room(gpus: float) -> int:
    """How many shards may be under way: enough for every worker, and no more, so that memory stays flat."""
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    workers = resources.get("GPU", 0) / gpus if gpus else resources.get("CPU", 1)
    return AHEAD * max(1, int(workers))


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


# What runs on a worker.


def make_shard(
    weights: Any, sha256: str, version: str, settings: SampleSettings, gpus: float, sweep: str, shard: range
) -> "Images":
    """A shard's images. DiffctlError where another diffctl or torch is installed than on the driver."""
    from diffusion.sample.cell_images import shard_images

    if (own := library_version()) != version:
        raise DiffctlError(
            f"{socket.gethostname()} has another diffctl or torch than this machine ({own}, not {version}): "
            "install the same on both"
        )
    with _device(gpus, sweep) as device, _lying_on(device, _loaded(weights, sha256)) as loaded:
        return shard_images(loaded, settings, shard, device)


def _device(gpus: float, sweep: str) -> "AbstractContextManager[torch.device]":
    """A GPU is held against other sweeps; the shards of this one may share it by fractions."""
    import torch

    from diffusion.system.devices import acquire_device

    if not gpus:
        return nullcontext(torch.device("cpu"))
    return acquire_device(group=sweep if gpus < 1 else None)


@contextmanager
def _lying_on(device: "torch.device", loaded: "LoadedModel") -> "Iterator[LoadedModel]":
    """The model on the device for the block: a worker outlives its shard, and a GPU that is let go is empty.

    To hold the GPU until the worker ends would keep it from the worker that Ray gives it to next.
    """
    import torch

    if device.type != "cuda":
        yield loaded
        return
    lent = loaded._replace(network=copy.deepcopy(loaded.network))  # whose rounded copy is kept by nobody
    try:
        lent.network.to(device)
        yield lent
    finally:
        lent.network.to("cpu")
        torch.cuda.empty_cache()


_models: "dict[str, LoadedModel]" = {}  # a worker's last one, in the machine's memory


def _loaded(weights: Any, sha256: str) -> "LoadedModel":
    from diffusion.model.model_file import load_model

    if sha256 not in _models:
        _models.clear()
        with tempfile.NamedTemporaryFile() as file:
            file.write(weights.data)
            file.flush()
            _models[sha256] = load_model(Path(file.name))
    return _models[sha256]
