"""Code is a dependency: in a clone with real DVC, an edit reruns exactly the affected stages."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.conftest import environment
from tests.helpers.small import own_code, small_project
from tests.helpers.waiting import wait_until

STAGES = ("data", "reference", "train", "sample", "evaluate", "report")
FROM_TRAIN = ("train", "sample", "evaluate", "report")


class Edit(NamedTuple):
    """A replacement in a file."""

    file: str
    old: str
    new: str


class Case(NamedTuple):
    """Edits made together, and the stages with other results after them."""

    edits: tuple[Edit, ...]
    changes: tuple[str, ...]


CASES = {
    "data": Case((Edit("diffusion/data/sources/digits.py", "255 / 16", "254 / 16"),), STAGES),
    "loss": Case(
        (Edit("diffusion/process/losses.py", "(target - predicted).square()", "(target - predicted).abs()"),),
        FROM_TRAIN,
    ),
    "sampler": Case(
        (Edit("diffusion/sample/ddim.py", "return x_prev, x0_hat\n", "return 1.1 * x_prev, x0_hat\n"),),
        FROM_TRAIN[1:],
    ),
    "extractor": Case(
        (Edit("diffusion/evaluate/features/effnet.py", "- 127) / 128", "- 126) / 128"),),
        ("reference", "evaluate", "report"),
    ),
    "scorer": Case(
        (Edit("diffusion/evaluate/scores/kernel_distance.py", "+ 1) ** 3)", "+ 1) ** 2)"),),
        ("evaluate", "report"),
    ),
    "unused entries, locks, comments and docstrings": Case(
        (
            Edit("diffusion/sample/dpm_solver.py", "0.25 + r / 2", "0.25 + r / 3"),
            Edit("diffusion/train/classifier_training.py", "logits.argmax(1)", "logits.argmin(1)"),
            Edit("diffusion/system/locks.py", "MIN_WAIT_SECONDS = 0.2", "MIN_WAIT_SECONDS = 0.3"),
            Edit("diffusion/train/loop.py", "MAX_BAD_STEPS = 5", "# Some.\nMAX_BAD_STEPS = 5"),
            Edit("diffusion/sample/sampler.py", '"""Samplers as generators', '"""Methods as generators'),
        ),
        (),
    ),
}


def reproduce(folder: Path, *arguments: str) -> str:
    """Run `dvc repro` in the folder and return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", *arguments],
        cwd=folder,
        env=environment({**own_code(folder), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def results(folder: Path) -> dict[str, object]:
    """Return the outputs of every stage in dvc.lock."""
    stages = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    assert set(stages) == set(STAGES)
    return {name: [(out["path"], out["md5"]) for out in stage["outs"]] for name, stage in stages.items()}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_project(tmp_path_factory.mktemp("edits") / "project", sample={"num_images": 12})
    reproduce(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_edit_reruns_exactly_the_affected_stages(project: Path, name: str) -> None:
    case, before = CASES[name], results(project)
    lock = (project / "dvc.lock").read_text()
    texts = {project / one.file: (project / one.file).read_text() for one in case.edits}
    for one in case.edits:
        edit(project / one.file, one.old, one.new)
    try:
        output = reproduce(project)
        after = results(project)
        assert tuple(stage for stage in STAGES if after[stage] != before[stage]) == case.changes
        restart = re.search(r"the training's code has changed in (.*) since step 12", output)
        assert bool(restart) == ("train" in case.changes and "data" not in case.changes)
        assert restart is None or Path(case.edits[0].file).name in restart[1]
    finally:
        for file, text in texts.items():
            file.write_text(text)
        (project / "dvc.lock").write_text(lock)
        subprocess.run(
            [sys.executable, "-m", "dvc", "checkout", "--force", "--quiet"],
            cwd=project,
            check=True,
            env=environment(),
        )


@pytest.mark.slow
def test_keep_resumes_with_changed_code_and_the_model_records_both_versions(
    project: Path, tmp_path: Path
) -> None:
    from diffusion.model.model_file import read_artefact

    folder = shutil.copytree(project, tmp_path / "project")
    first = read_artefact(folder / "models/model.safetensors")
    edit(
        folder / "diffusion/train/lr_schedule.py", "rate = rate * (step + 1)", "rate = 3 * rate * (step + 1)"
    )
    kept = subprocess.run(
        [sys.executable, "-m", "cli.entry", "stage", "train", "--keep"],
        cwd=folder,
        env=environment(own_code(folder)),
        capture_output=True,
        text=True,
    )
    assert kept.returncode == 0, kept.stderr
    assert "resuming after step 12 of 12" in kept.stderr
    assert "the code has changed since these steps" in kept.stderr
    model = read_artefact(folder / "models/model.safetensors")
    assert [since.step for since in model.code] == [0, 12]
    assert model.code[0] == first.code[0]
    assert model.model_sha256 == first.model_sha256


# What a stage runs before it trains: it waits for the edits of the test.
WAIT = """
    from pathlib import Path
    from time import sleep

    Path("begun").touch()
    while not Path("edited").exists():
        sleep(0.01)
"""


def run_python(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start Python in the folder, with the folder's code."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment({**own_code(folder), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def edited_meanwhile(folder: Path, *edits: Edit) -> tuple[int, str]:
    """Make edits while `dvc repro train` trains; return the exit code and the output."""
    for name in ("begun", "edited"):
        (folder / name).unlink(missing_ok=True)
    process = run_python(folder, "-m", "dvc", "repro", "--single-item", "train")
    wait_until(lambda: (folder / "begun").exists() or process.poll() is not None, 120)
    for one in edits:
        edit(folder / one.file, one.old, one.new)
    (folder / "edited").touch()
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.mark.slow
def test_edits_while_a_stage_runs_are_not_recorded_as_its_inputs(project: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(project, tmp_path / "project")
    for made in ("runs/train", ".dvc/cache/runs"):
        shutil.rmtree(folder / made)
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    lock["stages"] = {"data": lock["stages"]["data"]}
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock))
    rates = "rate: 0.002", "rate: 0.5"
    edit(
        folder / "cli/stages/train_stage.py",
        "    training = trainer.lead(",
        f"{WAIT}\n    training = trainer.lead(",
    )
    constant = "MAX_BAD_STEPS = 5"
    edits = (
        Edit("params.yaml", *rates),
        Edit("diffusion/train/loop.py", constant, "MAX_BAD_STEPS = 6"),
    )
    code, output = edited_meanwhile(folder, *edits)
    assert code != 0
    assert "changed while the stage train ran (train.lr.rate 0.002 → 0.5, diffusion/train/loop.py)" in output
    assert "train" not in yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    for one in edits:
        edit(folder / one.file, one.new, one.old)
    code, output = edited_meanwhile(folder, Edit("diffusion/train/loop.py", constant, f"# Some.\n{constant}"))
    assert code == 0, output
    assert "resuming after step 12 of 12" in output
