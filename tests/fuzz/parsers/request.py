"""A request to the registered model: MLflow passes it the values of JSON."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.protocol.scores_document import write_scores_document
from diffusion.system.errors import DiffctlError
from tests.helpers.networks import artefact_of, network_of, spec_of
from tests.helpers.scores_document import document
from tracking.registry.pyfunc_model import RegisteredSampler, Request


def seeds() -> list[bytes]:
    """Return a minimal and a complete request."""
    whole = {
        "num": 2,
        "indices": [3, 5],
        "steps": 2,
        "eta": 0.5,
        "seed": 7,
        "class": "class3",
        "guidance": 1.5,
        "guidance_interval": [0.2, 5],
        "noise": "large",
        "spacing": "trailing",
        "clip": False,
    }
    without = {"num": 1, "steps": 1, "eta": 0.0}
    return [json.dumps(values).encode() for values in ({}, without, whole)]


@cache
def _sampler() -> RegisteredSampler:
    """Return a small model of four timesteps, loaded as from the registry."""
    spec = spec_of(channels=4, channel_mult=(1,), attention_resolutions=(), head_channels=4)
    with TemporaryDirectory() as folder:
        weights, scores = Path(folder) / "m.safetensors", Path(folder) / "scores.json"
        save_artefact(weights, network_of(spec).state_dict(), artefact_of(spec, timesteps=4))
        ours = read_artefact(weights).model_sha256
        write_scores_document(scores, document({(2, 0.0): 0.1}, model_sha256=ours))
        context = SimpleNamespace(
            artifacts={"weights": str(weights), "scores": str(scores)},
            model_config={"best_cell": "steps2-eta0"},
        )
        sampler = RegisteredSampler()
        sampler.load_context(context)
    return sampler


def parse(path: Path) -> None:
    """Sample for the request; a refusal that the client receives is expected."""
    sampler = _sampler()
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # reported by the scoring server
        raise DiffctlError("it is no JSON") from error
    try:
        (reply,) = sampler.predict([Request.model_validate(values)])
    except (ValidationError, MlflowException) as error:
        raise DiffctlError(str(error).replace("\n", " ")[:1000]) from None
    assert len(reply.images) == len(reply.indices)
