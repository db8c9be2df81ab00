"""`diffctl use`: params.yaml becomes a profile without losing edits, or gets pinned initial weights."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cli.commands.pipeline import Use
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.system.errors import DiffctlError, UsageError
from tests.conftest import ROOT, command, diffctl, write_params
from tests.helpers.invoke import Invoke, assert_refused
from tests.helpers.mlflow_server import empty_database
from tests.helpers.networks import artefact_of, network_of, spec_of
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
    text = (folder / "params.yaml").read_text() + "\n# mine\n"
    (folder / "params.yaml").write_text(text)
    return text


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


VELOCITY = {"prediction": "velocity", "timesteps": 1000}


def model_file(path: Path, **shape: object) -> Path:
    """A model that fits the small digits project, unless its shape is another one."""
    spec = spec_of(**shape)
    artefact = artefact_of(spec)
    process = artefact.process.model_copy(update=VELOCITY)
    save_artefact(path, network_of(spec).state_dict(), artefact.model_copy(update={"process": process}))
    return path


def pinned(folder: Path) -> object:
    return yaml.safe_load((folder / "params.yaml").read_text())["train"].get("init_from")


def found(invoke: Invoke) -> dict[str, dict[str, str]]:
    """Return the findings of `diffctl check` by subject."""
    return {one["subject"]: one for one in json.loads(invoke("check", "--json").out)}


def test_model_is_stored_pinned_and_checked(project: Path, invoke: Invoke) -> None:
    model = model_file(project / "mine.safetensors")
    sha256 = read_artefact(model).model_sha256
    done = invoke("use", "--init-from", "mine.safetensors")
    kept = project / "start" / f"{sha256[:16]}.safetensors"
    assert kept.read_bytes() == model.read_bytes()
    assert pinned(project) == {"sha256": sha256}
    assert "8×8×1, 10 classes" in done.out
    assert sha256[:16] in found(invoke)["start"]["message"]
    kept.unlink()
    missing = found(invoke)["start"]
    assert (missing["level"], "`diffctl use --init-from`" in missing["message"]) == ("error", True)
    kept.with_name(f"{kept.name}.dvc").touch()
    assert found(invoke)["start"]["level"] == "warning", "DVC can fetch it"
    assert invoke("use", "--init-from", "none").code == 0
    assert pinned(project) is None
    assert "start" not in found(invoke)


def test_check_reports_a_model_of_another_shape_or_of_grey_images(project: Path, invoke: Invoke) -> None:
    model_file(project / "mine.safetensors", channels=16)
    assert invoke("use", "--init-from", "mine.safetensors").code == 0
    assert "model.channels is 8, and the pretrained model has 16" in found(invoke)["start"]["message"]
    write_params(project, data={"channels": 3}, process=VELOCITY)
    model_file(project / "mine.safetensors")
    assert invoke("use", "--init-from", "mine.safetensors").code == 0
    warned = found(invoke)["start"]
    assert (warned["level"], "grey images" in warned["message"]) == ("warning", True)


@pytest.mark.slow
def test_dvc_tracks_the_model_and_git_sees_the_pin(project: Path) -> None:
    (project / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    git(project, "init", "--quiet")
    commit(project, "begin")
    subprocess.run([command()[0], "-m", "dvc", "init", "--quiet"], cwd=project, check=True)
    model_file(project / "models.safetensors")
    done = diffctl(project, "use", "--init-from", "models.safetensors")
    assert done.returncode == 0, done.stderr
    (tracked,) = (project / "start").glob("*.dvc")
    assert str(tracked.relative_to(project)) in done.stdout
    changed = git(project, "status", "--porcelain", "--untracked-files=all", "start", "params.yaml")
    assert {line[3:] for line in changed.splitlines()} == {"params.yaml", str(tracked.relative_to(project))}


def test_missing_model_changes_nothing(project: Path) -> None:
    empty_database(project / "mlflow.db")
    before = (project / "params.yaml").read_text()
    for start, word in {
        None: "--init-from",
        "params.yaml": "safetensors",
        "champion": "diffctl-digits has no champion",
        "champion:shoes": "diffctl-shoes has no champion",
        "version:2:shoes": "diffctl-shoes has no version 2",
        "4711": "'4711'",
    }.items():
        with pytest.raises(DiffctlError, match=word):
            Use(init_from=start).run()
    assert (project / "params.yaml").read_text() == before
    assert not list(project.glob("start/*"))
