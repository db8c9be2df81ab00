"""Fixtures: an empty project with an MLflow store, a training's folder, and a model with its scores."""

from pathlib import Path

import pytest
import torch

from diffusion.config import parse
from diffusion.images.store import open_store
from diffusion.layout import MODEL, RUN, SCORES
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.protocol.scores_document import ScoresDocument, write_scores_document
from diffusion.system.checksums import add_checksum
from diffusion.system.files import write_json
from diffusion.train.initial_state import new_state
from diffusion.train.plan import plan_training
from tests.conftest import params
from tests.helpers.mlflow_server import empty_database
from tests.helpers.scores_document import document
from tracking.registry.registered_models import register
from tracking.store import tracking_uri

CPU = torch.device("cpu")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty project with an empty MLflow store, as the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    empty_database(tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def uri(here):
    """The URI of the project's empty store."""
    return tracking_uri(here)


@pytest.fixture
def folder(tmp_path):
    """A training's folder, which does not exist yet."""
    return tmp_path / "runs" / "train" / "abcd"


@pytest.fixture
def make_model(digits_store):
    """A function that writes a small real model and its scores, as a training and an evaluation do.

    `kernel` are the kernel distances by (steps, eta), `train` further values of params.yaml's section.
    """

    def make(
        seed: int,
        kernel: dict | None = None,
        add: float = 0.01,
        train: dict | None = None,
        store: Path = digits_store,
        model: dict | None = None,
        **card,
    ) -> str:
        config = parse(params(train={"seed": seed, **(train or {})}, model=model or {}), "the test")
        artefact = plan_training(config, open_store(store).meta, CPU)
        state = new_state(artefact, CPU)
        weights = {key: value + add for key, value in state.ema.state_dict().items()}
        sha256 = save_artefact(MODEL, weights, artefact).model_sha256
        write_json(RUN, add_checksum({"key": f"key{seed}", "fingerprint": f"{seed}" * 16}))
        made = document(kernel, model_sha256=sha256, **card)
        training = read_artefact(MODEL).training
        write_scores_document(SCORES, ScoresDocument(**{**dict(made), "training": training}))
        return sha256

    return make


@pytest.fixture
def registered(here, make_model):
    """A project with version 1 as champion."""
    make_model(1)
    register()
    return here
