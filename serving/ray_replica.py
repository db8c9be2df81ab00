"""What Ray starts as often as it is asked to: the application over a service of its own."""

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
from serving.serve_config import ServeConfig
from serving.service import Service


class ReplicaSpec(NamedTuple):
    """What a replica serves, and how.

    Of a model that stays, `weights` has its file in Ray's store, so that no machine needs to share files with
    another; of a champion it is None, and each replica asks the MLflow at `tracking`. `version` is
    `library_version` of the machine that it is planned at.
    """

    model: PublishedModel | ModelSource
    weights: Any
    tracking: str
    config: ServeConfig
    token: bytes | None
    gpus: float
    version: str


class Replica:
    """A service that Ray asks for its application, whether it is well, and to end.

    DiffctlError where another diffctl or torch is installed than at the machine that planned it.
    """

    def __init__(self, plan: ReplicaSpec) -> None:
        if (own := library_version()) != plan.version:
            raise DiffctlError(
                f"another diffctl or torch is installed there than here ({own}, not {plan.version}): "
                "install the same on all machines"
            )
        os.environ["MLFLOW_TRACKING_URI"] = plan.tracking
        device = default_device() if plan.gpus else torch.device("cpu")
        with tempfile.TemporaryDirectory() as folder:  # a model that is loaded needs its file no more
            self._service = Service(_source(plan, Path(folder)), device, plan.config, _say)
        self._app = create_app(self._service, plan.token)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application, once this is made: Ray runs its lifespan and passes requests on to it."""
        return self._app

    async def check_health(self) -> None:
        """RuntimeError where the engine has failed: Ray then starts another replica in this one's place."""
        if not self._service.draining and not self._service.is_ready:
            raise RuntimeError("the engine has failed")

    async def drain(self) -> None:
        """Answer what was begun, for as long as is allowed, and everything else by 503."""
        await self._service.drained()
        await self._service.stop()


def _source(plan: ReplicaSpec, folder: Path) -> ModelSource:
    if not isinstance(plan.model, PublishedModel):
        return plan.model
    import ray

    file = folder / plan.model.file.name
    file.write_bytes(ray.get(plan.weights).data)
    return FixedSource(plan.model._replace(file=file))


def _say(sentence: str) -> None:
    print(f"diffctl: {sentence}", file=sys.stderr)  # into the log that Ray keeps of the replica
