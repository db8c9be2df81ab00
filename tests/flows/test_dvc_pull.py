"""Weights that DVC tracks and that are not here are pulled before a training is checked, by real DVC."""

import shutil
import subprocess
from pathlib import Path

import pytest

from diffusion.config import parse
from diffusion.system.errors import DiffctlError
from diffusion.system.files import write_text
from flows.dvc_pull import fetch_networks, update_tracked_files
from flows.dvc_stage import DVC
from tests.conftest import params
from tests.helpers.toy_project import toy_project

SAMPLE = {"guidance": 1.0, "guide": "guides/early", "classifier": "classifier", "classifier_scale": 1.0}


@pytest.mark.slow
def test_missing_guide_and_classifier_are_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy_project(tmp_path))
    write_text(Path("guides/early"), "a guide")
    write_text(Path("classifier"), "a classifier")
    for command in (("add", "guides", "classifier"), ("remote", "add", "-d", "here", "remote"), ("push",)):
        subprocess.run([*DVC, *command], check=True, capture_output=True)

    def lose() -> None:
        for folder in ("guides", ".dvc/cache"):
            shutil.rmtree(folder)
        Path("classifier").unlink()

    config = parse(params(sample=SAMPLE), "params.yaml")
    lose()
    fetch_networks(config)
    assert (Path("guides/early").read_text(), Path("classifier").read_text()) == ("a guide", "a classifier")
    lose()
    shutil.rmtree("remote")
    with pytest.raises(DiffctlError, match=r"sample: guides/early is missing, and `dvc pull guides\.dvc` fa"):
        fetch_networks(config)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["cache", "remote"])
def test_files_of_an_older_commit_are_replaced_in_a_clone(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = toy_project(tmp_path)
    monkeypatch.chdir(project)

    def run(*command: str) -> None:
        subprocess.run([*DVC, *command], check=True, capture_output=True)

    write_text(Path("guide"), "first")
    for command in (("add", "guide"), ("remote", "add", "-d", "here", "remote"), ("push",)):
        run(*command)
    old = Path("guide.dvc").read_text()
    Path("guide").unlink()
    write_text(Path("guide"), "second")
    run("add", "guide")
    run("push")
    new = Path("guide.dvc").read_text()
    write_text(Path("guide.dvc"), old)
    run("checkout", "--force", "guide.dvc")
    write_text(Path("guide.dvc"), new)
    if where == "remote":
        shutil.rmtree(".dvc/cache")
    update_tracked_files(project)
    assert Path("guide").read_text() == "second"
    Path("guide").unlink()
    update_tracked_files(project)
    assert not Path("guide").exists()
