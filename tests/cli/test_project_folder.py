"""The project's folder: what DVC cannot work with, subfolders, `dvc exp run`, and a whole `diffctl run`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.stages.context import share_runs
from diffusion.layout import MARK, MODEL, home
from diffusion.project import find_project
from tests.conftest import ROOT, command, diffctl, environment, run_python
from tests.helpers.invoke import Invoke, assert_refused
from tests.helpers.networks import small_model
from tests.helpers.prefect_home import recorded, with_database
from tests.helpers.small import git, own_code, small_project
from tests.helpers.toy_project import processes_in
from tests.helpers.waiting import wait_until
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / ".git").rename(root / "gone"), "no Git repository"),
        (lambda root: (root / ".dvc/config").unlink(), "`dvc init`"),
        (lambda root: (root / "dvc.lock").write_text(CONFLICT), "dvc.lock has conflict markers from line 2"),
        (lambda root: (root / ".dvc/config").write_text(CONFLICT), ".dvc/config has conflict markers"),
        (lambda root: (root / MARK).write_text(CONFLICT), "project.yaml has conflict markers from line 2"),
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("(target - predicted)", "(target - predicted)", 0),
        ('"""', '"""Other words. ', 0),
        ("(target - predicted)", "(predicted - target)", 2),
    ],
)
def test_project_with_other_code_than_the_installed_one_is_refused(tmp_path: Path, old, new, code) -> None:
    folder = small_project(tmp_path / "project")
    (folder / "plugins/__init__.py").write_text("print('a plugin')\n")
    losses = folder / "diffusion/process/losses.py"
    losses.write_text(losses.read_text().replace(old, new, 1))
    done = run_python(folder, "-P", "-m", "cli.entry", "--help")
    assert done.returncode == code, done.stderr
    assert ("a plugin" in done.stdout) == (code == 0)
    refusal = (
        f"diffctl: {losses} is not the code that runs, {ROOT / 'diffusion/process/losses.py'}: activate "
    )
    assert done.stderr.startswith(refusal if code else "")
    assert done.stderr.count("\n") == (1 if code else 0)


FOREIGN = {"params.yaml": "lr: 0.1", "plugins/__init__.py": "raise SystemExit('run')"}
OURS = {"dvc.yaml": "stages: {data: {cmd: diffctl stage data}}"}


def write_files(folder: Path, files: dict[str, str]) -> Path:
    """Write the files into the folder."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "root"),
    [
        ({}, None),
        (FOREIGN, None),
        ({"a/dvc.yaml": "stages: {}", str(MARK): ""}, None),
        ({str(MARK): ""}, "."),
        ({f"a/{MARK}": "", str(MARK): ""}, "a"),
        (OURS | FOREIGN, "."),
        ({f"a/{name}": text for name, text in OURS.items()} | {str(MARK): ""}, "a"),
    ],
)
def test_project_is_the_nearest_folder_with_a_mark_or_our_stages(tmp_path: Path, files, root) -> None:
    below = write_files(tmp_path, files) / "a/b"
    below.mkdir(parents=True, exist_ok=True)
    found = find_project(below)
    assert found == (root and (tmp_path / root).resolve())


@pytest.mark.slow
def test_code_of_a_folder_that_is_no_project_is_not_run(tmp_path: Path) -> None:
    write_files(tmp_path, FOREIGN)
    assert run_python(tmp_path, "-P", "-c", "import diffusion.api").returncode == 0
    assert diffctl(tmp_path, "--help", env={"PYTHONSAFEPATH": "1"}).returncode == 0


NOTEBOOK = """
from diffusion.protocol.samplers import SAMPLERS
from diffusion.project import load_project
print(load_project(), SAMPLERS.plugins)
"""
PLUGIN = """
from diffusion.protocol.samplers import SAMPLERS, SamplerEntry
SAMPLERS["mine"] = SamplerEntry("plugins.sample.mine:build")
"""


@pytest.mark.slow
def test_commands_and_notebooks_work_in_a_subfolder(project: Path) -> None:
    """Paths of the user are relative to where the user is; defaults and plugins are those of the project."""
    folder = write_files(project, {"plugins/__init__.py": PLUGIN, "notebooks/.keep": ""}) / "notebooks"
    small_model(project / "model.safetensors")
    arguments = ["sample", "--model", "../model.safetensors", "--num", "1", "--steps", "1", "--out", "x.png"]
    done = diffctl(folder, *arguments)
    assert (done.returncode, (folder / "x.png").is_file()) == (0, True), done.stderr
    assert "mine" in diffctl(folder, "sample", "--help").stdout
    assert diffctl(folder, "ema", "--sigma-rel", "0.1").stderr.startswith("diffctl: models/ema ")
    assert json.loads(diffctl(folder, "runs", "--json").stdout) == []
    assert [path.name for path in folder.iterdir()].count("mlflow.db") == 0
    found = run_python(folder, "-c", NOTEBOOK).stdout
    assert found.strip() == f"{project.resolve()} ['mine']"


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


@pytest.mark.long
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


@pytest.mark.long
def test_stopped_run_resumes_and_registers_its_model(tmp_path: Path, prefect_database: Path) -> None:
    """On the real graph and real digits: stopped, resumed, complete, up to date, then from scratch."""
    with_database(tmp_path, prefect_database)
    folder = small_project(tmp_path, train={"steps": 400, "save_every": 10})
    env = own_code(folder)
    run = subprocess.Popen(command("run"), cwd=folder, env=environment(env), start_new_session=True)
    wait_until(lambda: any(folder.glob("runs/train/*/state-*")), 240)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(60) == 130
    assert not (folder / MODEL).exists()

    resumed = diffctl(folder, "run", env=env)
    assert resumed.returncode == 0, resumed.stderr
    assert "train: resuming after step" in resumed.stdout
    assert "model:  diffctl-digits version 1: promoted" in resumed.stdout
    assert "report: report/index.html" in resumed.stdout
    assert "diffctl ui" in resumed.stdout
    assert "Traceback" not in resumed.stdout + resumed.stderr
    table = resumed.stdout[resumed.stdout.index("STEPS") :].splitlines()
    assert table[0].split() == ["STEPS", "ETA", "fd_effnet_lite0_64", "excess", "kd_effnet_lite0_64"]
    assert [row.split()[:2] for row in table[1:5]] == [["2", "0"], ["2", "1"], ["3", "0"], ["3", "1"]]
    assert (folder / "report/index.html").stat().st_size > 10_000
    states = recorded(folder)
    assert states["pipeline"] == states["sweep"] == states["steps3-eta1"] == states["register"] == "Completed"

    model = (folder / MODEL).read_bytes()
    scores = (folder / "metrics/scores.json").read_bytes()
    again = diffctl(folder, "run", env=env)
    assert again.stdout.count(": up to date\n") == 6
    assert "version 1: it is champion already" in again.stdout

    fresh = diffctl(folder, "run", "--fresh", env=env)
    assert "train: 400 steps" in fresh.stdout
    assert "==> evaluate: up to date" in fresh.stdout, "the same run gives the same bytes"
    assert (folder / MODEL).read_bytes() == model
    assert (folder / "metrics/scores.json").read_bytes() == scores
    cells = {f"steps{steps}-eta{eta}" for steps in (2, 3) for eta in (0, 1)}
    assert json.loads(scores)["cells"].keys() == cells
    wait_until(lambda: not processes_in(folder), 90)
