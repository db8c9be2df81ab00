"""`diffctl use`: params.yaml becomes a profile, and nobody's edits are lost."""

import shutil
import subprocess
from pathlib import Path

import pytest

from cli.commands.profiles import use
from diffusion.system.errors import UsageError
from tests.conftest import ROOT, diffctl

PROFILES = ROOT / "profiles"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed project at the digits profile, as the working directory."""
    shutil.copytree(PROFILES, tmp_path / "profiles")
    shutil.copy(PROFILES / "digits.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    git("add", "--all")
    git("-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", "begin")
    return tmp_path


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True)


def edit(folder: Path, old: str = "rate: 0.002", new: str = "rate: 0.001") -> str:
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace(old, new))
    return path.read_text()


def test_params_become_the_profile_comments_included(folder: Path) -> None:
    use("fashion-mnist")
    assert (folder / "params.yaml").read_text() == (PROFILES / "fashion-mnist.yaml").read_text()
    use("digits")
    assert (folder / "params.yaml").read_text() == (PROFILES / "digits.yaml").read_text()


def test_a_file_will_do_as_well(folder: Path) -> None:
    mine = folder / "mine.yaml"
    mine.write_text(edit(folder))
    use("mine.yaml")
    assert (folder / "params.yaml").read_text() == mine.read_text()


def test_unsaved_edits_are_kept_unless_forced(folder: Path) -> None:
    edited = edit(folder)
    with pytest.raises(UsageError, match="neither committed nor in profiles/"):
        use("fashion-mnist")
    assert (folder / "params.yaml").read_text() == edited
    use("fashion-mnist", force=True)
    assert (folder / "params.yaml").read_text() == (PROFILES / "fashion-mnist.yaml").read_text()


def test_committed_edits_are_safe_to_leave(folder: Path) -> None:
    edit(folder)
    git("-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-am", "slower")
    use("fashion-mnist")


def test_without_git_and_without_params_it_works(folder: Path) -> None:
    shutil.rmtree(folder / ".git")
    use("fashion-mnist")
    (folder / "params.yaml").unlink()
    use("digits")
    edit(folder)
    with pytest.raises(UsageError):
        use("fashion-mnist")


def test_a_profile_that_is_not_there_or_not_valid_changes_nothing(folder: Path) -> None:
    before = (folder / "params.yaml").read_text()
    with pytest.raises(UsageError, match=r"no profile digit .* profiles are: .*digits.*fashion-mnist"):
        use("digit")
    (folder / "broken.yaml").write_text(before.replace("batch_size: 64", "batch_size: -1"))
    with pytest.raises(UsageError, match=r"broken\.yaml: train\.batch_size"):
        use("broken.yaml")
    assert (folder / "params.yaml").read_text() == before


def test_the_command_says_what_it_did(folder: Path) -> None:
    done = diffctl(folder, "use", "fashion-mnist")
    assert done.stdout == "params.yaml is now profiles/fashion-mnist.yaml; `diffctl run` makes it\n"
    edit(folder, "rate: 0.003", "rate: 0.0001")
    refused = diffctl(folder, "use", "digits")
    assert refused.returncode == 2
    assert refused.stderr.startswith("diffctl: params.yaml has edits")
