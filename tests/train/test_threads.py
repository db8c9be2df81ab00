"""The number of threads is not part of a training's fingerprint: it changes rounding only."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusion.model.model_file import read_verified_artefact
from tests.helpers.training_process import prepare, signal_at, train_to_the_end, uninterrupted

pytestmark = pytest.mark.slow
TWO = {"OMP_NUM_THREADS": "2"}


def weights(path: Path) -> torch.Tensor:
    return torch.cat([value.double().flatten() for _, value in sorted(load_file(path).items())])


def test_the_number_of_threads_changes_rounding_only(tmp_path: Path) -> None:
    """Also for a training that was stopped with one thread and resumed with two, in float32."""
    prepare(tmp_path, steps=12, precision="fp32")
    one, model = tmp_path / "one.safetensors", tmp_path / "models/model.safetensors"
    one.write_bytes(uninterrupted(tmp_path))
    made = []
    for stopped in (True, False):
        if stopped:
            signal_at(tmp_path, 3, signal.SIGTERM)
        stderr = train_to_the_end(tmp_path, env=TWO).stderr
        assert ("resuming after step" in stderr) is stopped
        made.append(weights(model))
        assert read_verified_artefact(model).code == read_verified_artefact(one).code
        model.unlink()
        for run in tmp_path.glob("runs/train/*"):
            run.rename(tmp_path / "runs" / f"{stopped}-{run.name}")
    for other in made:
        assert (other - weights(one)).norm() < 1e-3 * weights(one).norm()
