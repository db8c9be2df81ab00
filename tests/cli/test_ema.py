"""`diffctl ema`: models with other EMA profiles."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from diffusion.model.model_file import load_model, read_artefact, save_artefact
from diffusion.model.posthoc_ema import Snapshots, snapshot_path
from tests.helpers.invoke import Invoke, assert_refused
from tests.helpers.networks import artefact_of, network_of, spec_of

WIDTHS, STEPS = (0.05, 0.1), (4, 8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the snapshots of a training of 8 steps."""
    monkeypatch.chdir(tmp_path)
    spec = spec_of()
    for number, (width, step) in enumerate(itertools.product(WIDTHS, STEPS)):
        artefact = artefact_of(spec, step=step, ema_sigma_rel=width)
        weights = network_of(spec, seed=number).state_dict()
        save_artefact(snapshot_path(tmp_path / "models/ema", width, step), weights, artefact)
    return tmp_path


def made(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("ema-*"))


def test_each_width_becomes_a_model_file(folder: Path, invoke: Invoke) -> None:
    models = json.loads(invoke("ema", "--sigma-rel", "0.2,0.1,0.2", "--json").out)
    assert [model["sigma_rel"] for model in models] == [0.2, 0.1]
    assert made(folder) == ["ema-0.1.safetensors", "ema-0.2.safetensors"]
    tracked = load_model(snapshot_path(folder / "models/ema", 0.1, 8))
    network, artefact = load_model(folder / "models/ema-0.1.safetensors")
    assert artefact == tracked.artefact, "a tracked width equals its last snapshot"
    for name, value in tracked.network.state_dict().items():
        assert torch.allclose(network.state_dict()[name], value, rtol=1e-6, atol=1e-7), name
    described = read_artefact(folder / "models/ema-0.2.safetensors")
    assert described.ema_sigma_rel == 0.2
    assert models[0] == {
        "sigma_rel": 0.2,
        "out": "models/ema-0.2.safetensors",
        "model_sha256": described.model_sha256,
        "step": 8,
        "error": pytest.approx(Snapshots.of(folder / "models/ema").fit(0.2).error),
    }


@pytest.mark.parametrize("width", ["", "0.005", "0.3", "nan", "0.1,,0.2"])
def test_invalid_width_is_refused(folder: Path, invoke: Invoke, width: str) -> None:
    assert_refused(invoke("ema", f"--sigma-rel={width}"), "--sigma-rel", "0.01", "0.28")
    assert made(folder) == []
