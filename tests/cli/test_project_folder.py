"""What keeps `diffctl run` from working is found by `check`; commands are refused in a subfolder."""

import json
from pathlib import Path

import pytest

from tests.helpers.invoke import Invoke, assert_refused
from tests.helpers.small import git

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
def test_command_of_the_project_is_refused_in_a_subfolder(
    repository: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    folder = repository / "notebooks"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert_refused(invoke(*command.split()), str(repository))
    assert not list(folder.iterdir())
