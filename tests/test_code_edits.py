"""Code is a dependency: in a clone with real DVC, an edit reruns exactly the affected stages."""

import re
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
    """A replacement in a file, and the stages with other results after it."""

    file: str
    old: str
    new: str
    changes: tuple[str, ...]


EDITS = {
    "data": Edit("diffusion/data/sources/digits.py", "255 / 16", "254 / 16", STAGES),
    "loss": Edit(
        "diffusion/process/losses.py", "noise) - predicted).square()", "noise) - predicted).abs()", FROM_TRAIN
    ),
    "schedule": Edit(
        "diffusion/process/noise_schedules.py", "(u + 0.008) / 1.008", "(u + 0.018) / 1.018", FROM_TRAIN
    ),
    "block": Edit(
        "diffusion/model/blocks.py", "F.silu(self.norm_in(x))", "F.relu(self.norm_in(x))", FROM_TRAIN
    ),
    "draw": Edit(
        "diffusion/train/batch.py",
        "image.normal_(generator=source)",
        "image.normal_(generator=source).neg_()",
        FROM_TRAIN,
    ),
    "learning rate": Edit(
        "diffusion/train/lr_schedule.py",
        "rate = rate * (step + 1)",
        "rate = 3 * rate * (step + 1)",
        FROM_TRAIN,
    ),
    "sampler": Edit(
        "diffusion/sample/ddim.py", "return x_prev, x0_hat\n", "return 1.1 * x_prev, x0_hat\n", FROM_TRAIN[1:]
    ),
    "extractor": Edit(
        "diffusion/evaluate/features/effnet.py",
        "- 127) / 128",
        "- 126) / 128",
        ("reference", "evaluate", "report"),
    ),
    "scorer": Edit(
        "diffusion/evaluate/scores/kernel_distance.py", "+ 1) ** 3)", "+ 1) ** 2)", ("evaluate", "report")
    ),
    "sampler that the grid does not use": Edit(
        "diffusion/sample/dpm_solver.py", "0.25 + r / 2", "0.25 + r / 3", ()
    ),
    "loss of another objective": Edit(
        "diffusion/train/classifier_training.py", "logits.argmax(1)", "logits.argmin(1)", ()
    ),
    "lock": Edit("diffusion/system/locks.py", "MIN_WAIT_SECONDS = 0.2", "MIN_WAIT_SECONDS = 0.3", ()),
    "comment": Edit("diffusion/train/loop.py", "MAX_BAD_STEPS = 5", "# Some.\nMAX_BAD_STEPS = 5", ()),
    "docstring": Edit(
        "diffusion/sample/sampler.py", '"""Samplers as generators', '"""Methods as generators', ()
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
@pytest.mark.parametrize("name", EDITS)
def test_edit_reruns_exactly_the_affected_stages(project: Path, name: str) -> None:
    edit, before = EDITS[name], results(project)
    file, lock = project / edit.file, (project / "dvc.lock").read_text()
    text = file.read_text()
    assert edit.old in text
    file.write_text(text.replace(edit.old, edit.new))
    try:
        output = reproduce(project)
        after = results(project)
        assert tuple(stage for stage in STAGES if after[stage] != before[stage]) == edit.changes
        restart = re.search(r"the training's code has changed in (.*) since step 12", output)
        assert bool(restart) == ("train" in edit.changes and "data" not in edit.changes)
        assert restart is None or Path(edit.file).name in restart[1]
    finally:
        file.write_text(text)
        (project / "dvc.lock").write_text(lock)
        subprocess.run(
            [sys.executable, "-m", "dvc", "checkout", "--force", "--quiet"],
            cwd=project,
            check=True,
            env=environment(),
        )


@pytest.mark.slow
def test_keep_resumes_with_changed_code_and_the_model_records_both_versions(tmp_path: Path) -> None:
    from diffusion.model.model_file import read_artefact

    folder = small_project(tmp_path / "project")
    reproduce(folder, "train")
    first = read_artefact(folder / "models/model.safetensors")
    edit = EDITS["loss"]
    file = folder / edit.file
    file.write_text(file.read_text().replace(edit.old, edit.new))
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


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


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


def edited_meanwhile(folder: Path, file: str, old: str, new: str) -> tuple[int, str]:
    """Edit a file while `dvc repro train` trains; return the exit code and the output."""
    for name in ("begun", "edited"):
        (folder / name).unlink(missing_ok=True)
    process = run_python(folder, "-m", "dvc", "repro", "--single-item", "train")
    wait_until(lambda: (folder / "begun").exists() or process.poll() is not None, 120)
    edit(folder / file, old, new)
    (folder / "edited").touch()
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


RUN_TRAIN = "import asyncio; from flows.pipeline_steps import run_step; asyncio.run(run_step('train', False))"


@pytest.mark.slow
def test_edits_while_a_stage_runs_are_not_recorded_as_its_inputs(tmp_path: Path) -> None:
    """Also a model that DVC recorded with another rate is trained again."""
    folder = small_project(tmp_path / "project")
    params, rates = folder / "params.yaml", ("rate: 0.002", "rate: 0.5")
    edit(
        folder / "cli/stages/train_stage.py",
        "    training = trainer.lead(",
        f"{WAIT}\n    training = trainer.lead(",
    )
    reproduce(folder, "data")
    for file, old, new in (
        ("params.yaml", *rates),
        ("diffusion/train/loop.py", "MAX_BAD_STEPS = 5", "MAX_BAD_STEPS = 6"),
    ):
        code, output = edited_meanwhile(folder, file, old, new)
        assert code != 0
        assert "changed while the stage train ran" in output
        assert "train.lr.rate 0.002 → 0.5" in output or "diffusion/train/loop.py" in output
        assert "train" not in yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
        edit(folder / file, new, old)
    constant = "MAX_BAD_STEPS = 5"
    code, output = edited_meanwhile(folder, "diffusion/train/loop.py", constant, f"# Some.\n{constant}")
    assert code == 0, output
    assert "resuming after step 12 of 12" in output

    edit(params, *rates)
    assert run_python(folder, "-m", "dvc", "commit", "--force", "train").wait(60) == 0
    output, _ = run_python(folder, "-c", RUN_TRAIN).communicate(timeout=120)
    assert "==> train: up to date\n" in output
    assert "other settings (train.lr.rate 0.002 → 0.5): training again" in output
    assert "train.lr.rate" not in run_python(folder, "-c", RUN_TRAIN).communicate(timeout=120)[0]
