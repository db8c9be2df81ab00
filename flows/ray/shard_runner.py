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
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.code_digest import check_worker_version, library_version
from diffusion.protocol.sample_sections import SampleConfig
from diffusion.system.errors import UsageError
from diffusion.system.files import sha256_file
from diffusion.system.signals import stop_request
from flows.ray.ray_session import RETRIES, get_result, ray_session, resolve_gpus

if TYPE_CHECKING:
    from diffusion.images.store import Images
    from diffusion.sample.cell_images import ShardRunner
    from diffusion.sample.network_files import Recipe

Digests = Sequence[str | None]
"""The SHA-256 of the files of NetworkFiles, as far as there are any."""

SHARDS_PER_WORKER = 2  # one running, one queued
POLL_SECONDS = 0.5


@contextmanager
def ray_runner(config: SampleConfig) -> "Iterator[ShardRunner]":
    """Yield a ShardRunner; raise UsageError without Ray or its GPUs, DiffctlError without the cluster."""
    with ray_session(config.address, "sample.runner ray needs Ray: pip install 'diffctl[ray]'"):
        gpus = resolve_gpus(config.num_gpus, "sample.num_gpus", "shard")
        yield functools.partial(_run, gpus, uuid.uuid4().hex, {})


def _run(
    gpus: float,
    sweep: str,
    shared: dict[str, Any],
    recipe: "Recipe",
    shards: Sequence[range],
) -> "Generator[tuple[range, Images], None, None]":
    """Yield each shard with its images as they finish; raise DiffctlError if one fails.

    `sweep` identifies this sweep; `shared` has the files in the object store by SHA-256.
    """
    import numpy as np
    import ray

    files = recipe.files
    if files.real is not None:
        raise UsageError(
            "sample.runner ray: its workers have no held-out images to enlarge: use local, or set sample.base"
        )
    digests = tuple(None if file is None else sha256_file(file) for file in files)
    for file, digest in zip(files, digests, strict=True):
        if file is not None and digest is not None and digest not in shared:
            shared[digest] = ray.put(np.fromfile(file, dtype=np.uint8))
    make = ray.remote(make_shard).options(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)
    # Ray resolves references among the arguments.
    contents = [None if digest is None else shared[digest] for digest in digests]
    same = digests, recipe, library_version(), gpus, sweep
    waiting = deque(shards)
    running: dict[Any, range] = {}
    try:
        with stop_request() as stop:  # Ray may swallow an exception of a signal handler
            while waiting or running:
                while waiting and len(running) < _max_running(gpus):
                    shard = waiting.popleft()
                    running[make.remote(*same, shard, *contents)] = shard
                for reference in ray.wait(list(running), timeout=POLL_SECONDS)[0]:
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
    digests: Digests,
    recipe: "Recipe",
    version: str,
    gpus: float,
    sweep: str,
    shard: range,
    *contents: Any,
) -> "Images":
    """Return a shard's images by the files' `contents`; raise DiffctlError if diffctl or torch differ."""
    import torch

    from diffusion.sample.cell_images import shard_images
    from diffusion.sample.guides import Guides
    from diffusion.system.devices import acquire_device

    check_worker_version(version)
    # A GPU is locked against other sweeps; fractions of it are shared by this one.
    own = acquire_device(group=sweep if gpus < 1 else None) if gpus else nullcontext(torch.device("cpu"))
    with own as device:
        networks = _loaded(digests, contents)
        recipe.networks.check_loaded(networks)
        if device.type == "cuda":  # copies, which keep no rounded ones alive
            networks = [one and one._replace(network=copy.deepcopy(one.network)) for one in networks]
        model, *guides = networks
        try:
            for one in filter(None, networks):
                one.network.to(device)
            return shard_images(model, recipe.settings, shard, device, Guides(*guides))
        finally:  # the worker outlives its shard, and Ray may give the GPU to another worker next
            if device.type == "cuda":
                for one in filter(None, networks):
                    one.network.to("cpu")
                torch.cuda.empty_cache()


_networks: dict[str, Any] = {}  # those of the worker's last shard, in host memory


def _loaded(digests: Digests, contents: Sequence[Any]) -> list[Any]:
    """Return the networks of these files; of the last ones those stay that are used again."""
    from diffusion.sample.network_files import NetworkFiles, load_network

    for other in _networks.keys() - set(digests):
        del _networks[other]
    for digest, content, kind in zip(digests, contents, NetworkFiles._fields, strict=True):
        if digest is not None and digest not in _networks:
            with tempfile.NamedTemporaryFile() as file:
                file.write(content.data)
                file.flush()
                _networks[digest] = load_network(kind, Path(file.name))
    return [None if digest is None else _networks[digest] for digest in digests]
