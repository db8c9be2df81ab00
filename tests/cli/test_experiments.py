"""`dvc exp run` in DVC's temporary folders: what outlasts them is the main checkout's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.stages.home import share_runs
from diffusion.layout import home
from tests.conftest import diffctl, environment
from tests.helpers.small import own_code, small_project
from tracking.store import tracking_uri


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as DVC makes one for an experiment, as the working directory."""
    folder = tmp_path / ".dvc/tmp/exps/tmpabc"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def test_a_temporary_folder_belongs_to_its_checkout(tmp_path: Path, temporary: Path) -> None:
    assert home(temporary) == tmp_path
    assert home(temporary / "deeper") == tmp_path
    assert home(tmp_path) == tmp_path
    assert home(tmp_path / ".dvc/tmp/exps") == tmp_path / ".dvc/tmp/exps"
    assert tracking_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_its_resumable_work_lies_in_the_checkout(tmp_path: Path, temporary: Path) -> None:
    share_runs()
    share_runs()
    (temporary / "runs/train").mkdir()
    assert (tmp_path / "runs/train").is_dir()


def test_a_checkout_keeps_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    share_runs()
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_an_experiment_in_a_temporary_folder_is_in_the_checkouts_mlflow(tmp_path: Path) -> None:
    folder = small_project(tmp_path)
    env = environment(own_code(folder))
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    arguments = ["exp", "run", "--temp", "-S", "train.seed=5", "evaluate"]
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (folder / "models").exists()
    listed = json.loads(diffctl(folder, "runs", "--json", env=own_code(folder)).stdout)
    (run,) = listed["runs"] if isinstance(listed, dict) else listed
    assert run["state"] == "finished"
    assert run["best"]
    assert len(list(folder.glob("runs/train/*/state-*"))) > 0
