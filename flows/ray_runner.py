"""Shards on Ray workers: on every device of this machine, or on a cluster (`sample.runner: ray`).

The model's file goes once to each node, through Ray's object store, and the images come back through it, so
the machines share no files. A worker that dies costs the shard that it was at.
"""

import copy
import functools
import logging
import os
import re
import signal
import socket
import tempfile
import uuid
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.protocol.settings import SampleSettings
from diffusion.sample.config import SampleConfig
from diffusion.system.errors import DiffctlError, UsageError, reason
from diffusion.system.files import sha256_file
from diffusion.system.signals import stop_request

if TYPE_CHECKING:
    import torch

    from diffusion.images.store import Images
    from diffusion.model.model_file import LoadedModel
    from diffusion.sample.sweep import Runner

RETRIES = 3  # of a shard whose worker died
AHEAD = 2  # shards a worker: one at work, one that waits
POLL_SECONDS = 0.5
KNOCK_SECONDS = 10


@contextmanager
def ray_runner(config: SampleConfig) -> "Iterator[Runner]":
    """A Runner of diffusion.sample.sweep for the block; of a Ray begun for it nothing is left then.

    UsageError when Ray is not installed or has no such GPU; DiffctlError when the cluster does not answer.
    """
    with _session(config.address):
        yield functools.partial(_run, _gpus(config.num_gpus), uuid.uuid4().hex, {})


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


@contextmanager
def _session(address: str | None) -> Iterator[None]:
    """Connected to the cluster at `address`, else to Ray of this process's own, which ends with it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("sample.runner ray needs Ray: pip install 'diffctl[ray]'") from None
    address = address or os.environ.get("RAY_ADDRESS") or None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as stack:
        if address is None:
            folder = tempfile.TemporaryDirectory(prefix="diffctl-ray-", ignore_cleanup_errors=True)
            options |= {"_temp_dir": stack.enter_context(folder), "include_dashboard": False}
        stack.callback(ray.shutdown)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            _knock(address)
            ray.init(address or "local", **options)
        except (OSError, RuntimeError, ValueError) as error:
            where = f"the Ray cluster at {address} is out of reach" if address else "Ray does not start here"
            raise DiffctlError(f"{where}: {_first_line(error)}") from None
        finally:
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own in place
        yield


def _knock(address: str | None) -> None:
    """OSError when nothing listens at a HOST:PORT, for which Ray would wait for minutes."""
    match = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address or "")
    if match:
        socket.create_connection((match[1], int(match[2])), timeout=KNOCK_SECONDS).close()


def _gpus(wanted: float | None) -> float:
    """The GPUs of a shard; UsageError where the cluster has not as many."""
    import ray

    there = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    gpus = min(1, there) if wanted is None else wanted
    if gpus > there:
        raise UsageError(f"sample.num_gpus asks for {gpus:g} GPUs a shard, and Ray has {there:g}")
    return gpus


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
            f"images {shard.start} to {shard.stop - 1} failed after {RETRIES} retries: {_first_line(error)}"
        ) from None
    return images


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# What runs on a worker.


def make_shard(
    weights: Any, sha256: str, version: str, settings: SampleSettings, gpus: float, sweep: str, shard: range
) -> "Images":
    """A shard's images. DiffctlError where another diffctl or torch is installed than on the driver."""
    from diffusion.sample.sweep import shard_images

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

    from diffusion.system.devices import held_device

    if not gpus:
        return nullcontext(torch.device("cpu"))
    return held_device(group=sweep if gpus < 1 else None)


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


@functools.lru_cache(maxsize=1)
def library_version() -> str:
    """The torch version and a digest of diffusion/: equal where equal images come from equal settings."""
    import hashlib

    import diffusion
    from diffusion.code import torch_version

    root = Path(diffusion.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return f"{digest.hexdigest()[:12]} with torch {torch_version()}"
