"""Threads are no part of what a training is: another number of them changes rounding and nothing else."""

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


def test_a_training_on_two_threads_is_that_on_one_to_rounding(tmp_path: Path) -> None:
    """Also one that was stopped on one thread and goes on with two; in float32, whose rounding is small."""
    prepare(tmp_path, steps=12, precision="fp32")
    one, model = tmp_path / "one.safetensors", tmp_path / "models/model.safetensors"
    one.write_bytes(uninterrupted(tmp_path))
    made = []
    for stopped in (True, False):
        if stopped:
            signal_at(tmp_path, 3, signal.SIGTERM)
        said = train_to_the_end(tmp_path, env=TWO).stderr
        assert ("resuming after step" in said) is stopped
        made.append(weights(model))
        assert read_verified_artefact(model).code == read_verified_artefact(one).code
        model.unlink()
        for run in tmp_path.glob("runs/train/*"):
            run.rename(tmp_path / "runs" / f"{stopped}-{run.name}")
    for other in made:
        assert (other - weights(one)).norm() < 1e-3 * weights(one).norm()
