"""`diffctl use`: params.yaml becomes a profile, and no edits are lost."""

import shutil
from pathlib import Path

import pytest

from cli.commands.pipeline import Use
from diffusion.system.errors import UsageError
from tests.conftest import ROOT
from tests.helpers.invoke import Invoke, assert_refused
from tests.helpers.small import commit, git

PROFILES = ROOT / "profiles"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed project at the digits profile, as the working directory."""
    shutil.copytree(PROFILES, tmp_path / "profiles")
    shutil.copy(PROFILES / "digits.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path, "begin")
    return tmp_path


def edit(folder: Path) -> str:
    path = folder / "params.yaml"
    path.write_text(path.read_text() + "\n# mine\n")
    return path.read_text()


def test_params_become_the_profile_but_edits_are_kept_unless_forced(folder: Path, invoke: Invoke) -> None:
    edited = edit(folder)
    assert_refused(invoke("use", "fashion-mnist"), "params.yaml has edits")
    assert (folder / "params.yaml").read_text() == edited
    Use(profile="fashion-mnist", force=True).run()
    assert (folder / "params.yaml").read_text() == (PROFILES / "fashion-mnist.yaml").read_text()


def test_committed_edits_and_edits_in_a_named_file_are_saved(folder: Path) -> None:
    mine = folder / "mine.yaml"
    mine.write_text(edit(folder))
    Use(profile="mine.yaml").run()
    assert (folder / "params.yaml").read_text() == mine.read_text()
    commit(folder, "slower")
    Use(profile="fashion-mnist").run()


def test_works_without_git_and_without_params(folder: Path) -> None:
    shutil.rmtree(folder / ".git")
    Use(profile="fashion-mnist").run()
    (folder / "params.yaml").unlink()
    Use(profile="digits").run()
    edit(folder)
    with pytest.raises(UsageError):
        Use(profile="fashion-mnist").run()


def test_missing_or_invalid_profile_changes_nothing(folder: Path) -> None:
    before = (folder / "params.yaml").read_text()
    with pytest.raises(UsageError, match=r"digit .*digits.*fashion-mnist"):
        Use(profile="digit").run()
    (folder / "broken.yaml").write_text(before.replace("batch_size: 64", "batch_size: -1"))
    with pytest.raises(UsageError, match=r"broken\.yaml: train\.batch_size"):
        Use(profile="broken.yaml").run()
    assert (folder / "params.yaml").read_text() == before
