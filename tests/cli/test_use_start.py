"""`diffctl use --init-from`: a model is stored under its SHA-256, pinned and checked."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from cli.commands.pipeline import Use
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.system.errors import DiffctlError
from tests.conftest import ROOT, command, diffctl, write_params
from tests.helpers.invoke import Invoke
from tests.helpers.mlflow_server import empty_database
from tests.helpers.networks import artefact_of, network_of, spec_of
from tests.helpers.small import commit, git

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


@pytest.mark.parametrize(
    ("start", "word"),
    [
        (None, "--init-from"),
        ("params.yaml", "safetensors"),
        ("champion", "diffctl-digits has no champion"),
        ("champion:shoes", "diffctl-shoes has no champion"),
        ("version:2:shoes", "diffctl-shoes has no version 2"),
        ("4711", "'4711'"),
    ],
)
def test_missing_model_changes_nothing(project: Path, start: str | None, word: str) -> None:
    empty_database(project / "mlflow.db")
    before = (project / "params.yaml").read_text()
    with pytest.raises(DiffctlError, match=word):
        Use(init_from=start).run()
    assert (project / "params.yaml").read_text() == before
    assert not list(project.glob("start/*"))
