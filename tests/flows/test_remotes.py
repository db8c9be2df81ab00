"""A DVC remote over SSH: pushed here, pulled in a fresh clone, and nothing reruns."""

import subprocess
from pathlib import Path

import pytest

from flows.dvc_stage import child_environment
from tests.helpers.small import commit, git
from tests.helpers.ssh import Ssh, ssh_server
from tests.helpers.toy_project import toy_project

pytest.importorskip("dvc_ssh")
pytestmark = pytest.mark.slow


def dvc(folder: Path, *arguments: str) -> str:
    """Run DVC in the folder; its output. CalledProcessError when it fails."""
    done = subprocess.run(
        ["dvc", *arguments], cwd=folder, env=child_environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def let_in(folder: Path, server: Ssh) -> None:
    """A member's own way in, in config.local, as in docs/production.md."""
    dvc(folder, "remote", "modify", "--local", "team", "user", server.user)
    dvc(folder, "remote", "modify", "--local", "team", "keyfile", str(server.key))


def test_a_clone_pulls_over_ssh_and_reruns_nothing(tmp_path: Path) -> None:
    for name in ("ssh", "here", "store"):
        (tmp_path / name).mkdir()
    here = toy_project(tmp_path / "here")
    with ssh_server(tmp_path / "ssh") as server:
        url = f"ssh://127.0.0.1:{server.port}{tmp_path / 'store'}"
        dvc(here, "remote", "add", "--default", "team", url)
        let_in(here, server)
        dvc(here, "repro")
        dvc(here, "push")
        commit(here, "made")
        assert "keyfile" not in (here / ".dvc/config").read_text()
        assert ".dvc/config.local" not in git(here, "ls-files").splitlines()

        git(tmp_path, "clone", "--quiet", str(here), "there")
        there = tmp_path / "there"
        let_in(there, server)
        dvc(there, "pull")
        assert "Running stage" not in dvc(there, "repro")
        assert dvc(there, "status") == "Data and pipelines are up to date.\n"
        assert dvc(there, "status", "--cloud").startswith("Cache and remote 'team' are in sync")
    assert any((tmp_path / "store/files/md5").glob("*/*"))
