"""A replica of Ray Serve: the application over its own service."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fastapi import FastAPI

from diffusion.code_digest import library_version
from diffusion.system.devices import default_device
from diffusion.system.errors import DiffctlError
from serving.app import create_app
from serving.model_source import FixedSource, ModelSource, PublishedModel
from serving.requests import ServeConfig
from serving.service import Service


class ReplicaSpec(NamedTuple):
    """What a replica serves, and how.

    `weights` is a fixed model's file in Ray's object store, so machines share no files. It is None for a
    champion, which each replica fetches from the MLflow at `tracking`. `version` is the driver's
    `library_version`.
    """

    model: PublishedModel | ModelSource
    weights: Any
    tracking: str
    config: ServeConfig
    token: bytes | None
    gpus: float
    version: str


class Replica:
    """The actor of Ray Serve: it provides the application, its health and its shutdown.

    Raises DiffctlError if this machine has another diffctl or torch than the driver.
    """

    def __init__(self, spec: ReplicaSpec) -> None:
        if (own := library_version()) != spec.version:
            raise DiffctlError(
                f"a replica has another diffctl or torch ({own}, not {spec.version}): "
                "install the same on all machines"
            )
        os.environ["MLFLOW_TRACKING_URI"] = spec.tracking
        device = default_device() if spec.gpus else torch.device("cpu")
        with tempfile.TemporaryDirectory() as folder:  # the file is not needed after loading
            self._service = Service(_source(spec, Path(folder)), device, spec.config, _log)
        self._app = create_app(self._service, spec.token)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application: Ray Serve runs its lifespan and forwards requests."""
        return self._app

    async def check_health(self) -> None:
        """Raise RuntimeError if the engine has failed; Ray Serve then replaces this replica."""
        if not self._service.draining and not self._service.is_ready:
            raise RuntimeError("the engine has failed")

    async def drain(self) -> None:
        """Answer running requests within the allowed time, and new ones with 503."""
        await self._service.drain()
        await self._service.stop()


def _source(spec: ReplicaSpec, folder: Path) -> ModelSource:
    if not isinstance(spec.model, PublishedModel):
        return spec.model
    import ray

    file = folder / spec.model.file.name
    file.write_bytes(ray.get(spec.weights).data)
    return FixedSource(spec.model._replace(file=file))


def _log(sentence: str) -> None:
    print(f"diffctl: {sentence}", file=sys.stderr)  # Ray keeps it in the replica's log
