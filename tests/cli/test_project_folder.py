"""The project's folder: what DVC cannot work with, subfolders, and the temporary folders of `dvc exp run`."""

import json
import os
import sys
from pathlib import Path

import pytest

from cli.stages.context import share_runs
from diffusion.layout import home
from tests.conftest import diffctl, environment, run_python
from tests.helpers.invoke import Invoke, assert_refused
from tests.helpers.small import git, own_code, small_project
from tracking.store import tracking_uri

CONFLICT = "a: 1\n<<<<<<< HEAD\nb: 1\n=======\nb: 2\n>>>>>>> other\n"


@pytest.fixture
def repository(project: Path) -> Path:
    """A project in which DVC can run stages."""
    (project / "dvc.yaml").write_text("stages: {}\n")
    (project / ".dvc").mkdir()
    (project / ".dvc/config").touch()
    git(project, "init", "--quiet")
    return project


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / ".git").rename(root / "gone"), "no Git repository"),
        (lambda root: (root / ".dvc/config").unlink(), "`dvc init`"),
        (lambda root: (root / "dvc.lock").write_text(CONFLICT), "dvc.lock has conflict markers from line 2"),
    ],
)
def test_check_and_run_name_what_dvc_cannot_work_with(repository, invoke: Invoke, damage, words) -> None:
    def errors() -> list[dict[str, str]]:
        return [one for one in json.loads(invoke("check", "--json").out) if one["level"] == "error"]

    assert errors() == []
    damage(repository)
    (error,) = errors()
    assert error["subject"] == "repository"
    assert words in f"{error['message']} {error['remedy']}"
    assert_refused(invoke("run"), words)


@pytest.mark.parametrize("command", ["runs reap", "sync", "status", "up", "down", "ui", "prune", "seeds"])
def test_command_of_the_project_is_refused_in_a_subfolder(repository, invoke, monkeypatch, command) -> None:
    folder = repository / "notebooks"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert_refused(invoke(*command.split()), str(repository))
    assert not list(folder.iterdir())


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
