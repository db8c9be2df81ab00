"""`diffctl use --start`: a model is kept under its SHA-256 and pinned in params.yaml; `check` tells."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from cli.commands.profiles import use
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.system.errors import DiffctlError
from tests.conftest import ROOT, command, diffctl, write_params
from tests.helpers.networks import artefact_of, network_of, spec_of
from tests.helpers.small import git

VELOCITY = {"prediction": "velocity", "timesteps": 1000}


def model_file(path: Path, **shape: object) -> Path:
    """A model that fits the small digits project, unless its shape is another one."""
    spec = spec_of(**shape)
    artefact = artefact_of(spec)
    process = artefact.process.model_copy(update=VELOCITY)
    save_artefact(path, network_of(spec).state_dict(), artefact.model_copy(update={"process": process}))
    return path


def pinned(folder: Path) -> object:
    return yaml.safe_load((folder / "params.yaml").read_text())["train"].get("start")


def found(folder: Path) -> dict[str, dict[str, str]]:
    said = json.loads(diffctl(folder, "check", "--json").stdout)
    return {one["subject"]: one for one in (said if isinstance(said, list) else said["findings"])}


@pytest.mark.slow
def test_a_file_is_kept_and_pinned_and_check_knows_it(project: Path) -> None:
    model = model_file(project / "mine.safetensors")
    sha256 = read_artefact(model).model_sha256
    done = diffctl(project, "use", "--start", "mine.safetensors")
    assert done.returncode == 0, done.stderr
    kept = project / "start" / f"{sha256[:16]}.safetensors"
    assert kept.read_bytes() == model.read_bytes()
    assert pinned(project) == {"sha256": sha256}
    assert "1 steps of test, 8×8×1, 10 classes" in done.stdout
    assert found(project)["start"]["message"] == f"from {sha256[:16]}, 1 steps of test"
    kept.unlink()
    missing = found(project)["start"]
    assert missing["level"] == "error"
    assert "is not here: `diffctl use --start` fetches it" in missing["message"]
    kept.with_name(f"{kept.name}.dvc").touch()
    assert found(project)["start"]["level"] == "warning", "the stage lets DVC bring it"
    assert diffctl(project, "use", "--start", "none").returncode == 0
    assert pinned(project) is None
    assert "start" not in found(project)


@pytest.mark.slow
def test_a_start_of_another_shape_is_told_by_check(project: Path) -> None:
    model_file(project / "mine.safetensors", channels=16)
    assert diffctl(project, "use", "--start", "mine.safetensors").returncode == 0
    assert "model.channels is 8, and the start has 16" in found(project)["start"]["message"]


@pytest.mark.slow
def test_a_start_of_grey_images_for_rgb_ones_is_warned_of(project: Path) -> None:
    write_params(project, data={"channels": 3}, process=VELOCITY)
    model_file(project / "mine.safetensors")
    assert diffctl(project, "use", "--start", "mine.safetensors").returncode == 0
    warned = found(project)["start"]
    assert warned["level"] == "warning"
    assert warned["message"].startswith("it knows grey images")


@pytest.mark.slow
def test_in_a_dvc_project_it_is_tracked_and_git_sees_the_pin_alone(project: Path) -> None:
    (project / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "begin")
    subprocess.run([command()[0], "-m", "dvc", "init", "--quiet"], cwd=project, check=True)
    model_file(project / "models.safetensors")
    done = diffctl(project, "use", "--start", "models.safetensors")
    assert done.returncode == 0, done.stderr
    (tracked,) = (project / "start").glob("*.dvc")
    assert str(tracked.relative_to(project)) in done.stdout
    changed = git(project, "status", "--porcelain", "--untracked-files=all", "start", "params.yaml")
    assert sorted(line[3:] for line in changed.splitlines()) == sorted(
        ["params.yaml", str(tracked.relative_to(project))]
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a profile, a model with --start, or a paper with --protocol"),
        (["--start", "gone.safetensors"], "no model at gone.safetensors"),
        (["--start", "params.yaml"], "params.yaml is not a whole safetensors file"),
        (["--start", "champion"], "diffctl-digits has no champion"),
        (["--start", "champion:shoes"], "diffctl-shoes has no champion"),
        (["--start", "version:7"], "diffctl-digits has no version 7"),
        (["--start", "version:2:shoes"], "diffctl-shoes has no version 2"),
        (["--start", "version:last"], "last is no version's number"),
        (["--start", "version:0"], "0 is no version's number"),
        (["--start", "4711"], "there is no run '4711' in MLflow"),
    ],
)
def test_what_is_no_model_changes_nothing(project: Path, arguments: list[str], said: str) -> None:
    before = (project / "params.yaml").read_text()
    start = arguments[1] if arguments else None
    with pytest.raises(DiffctlError, match=said.replace(".", r"\.")):
        use(None, False, start)
    assert (project / "params.yaml").read_text() == before
    assert not list(project.glob("start/*"))
