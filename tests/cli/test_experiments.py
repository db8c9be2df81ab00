"""`dvc exp run` in DVC's temporary folders: resumable work and MLflow runs stay in the main checkout."""

import json
import os
import sys
from pathlib import Path

import pytest

from cli.stages.context import share_runs
from diffusion.layout import home
from tests.conftest import diffctl, environment, run_python
from tests.helpers.small import own_code, small_project
from tracking.store import tracking_uri


def test_temporary_folder_uses_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ".dvc/tmp/exps/tmpabc"
    folder.mkdir(parents=True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    share_runs()
    assert not (tmp_path / "runs").exists()
    monkeypatch.chdir(folder)
    assert home(folder) == home(folder / "deeper") == home(tmp_path) == tmp_path
    assert home(folder.parent) == folder.parent
    assert tracking_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"
    share_runs()
    share_runs()
    (folder / "runs/train").mkdir()
    assert (tmp_path / "runs/train").is_dir()


@pytest.mark.slow
def test_experiment_is_logged_to_the_mlflow_of_the_checkout(tmp_path: Path) -> None:
    folder = small_project(tmp_path)
    env = environment(own_code(folder))
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    done = run_python(folder, "-m", "dvc", "exp", "run", "--temp", "-S", "train.seed=5", "train", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (folder / "models").exists()
    (run,) = json.loads(diffctl(folder, "runs", "--json", env=own_code(folder)).stdout)
    assert run["state"] == "finished"
    assert len(list(folder.glob("runs/train/*/state-*"))) > 0
