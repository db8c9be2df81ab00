"""Code is a dependency: in a clone with real DVC, an edit reruns exactly the affected stages."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from diffusion.model.model_file import read_artefact
from tests.conftest import start_python
from tests.helpers.small import own_code, small_project
from tests.helpers.waiting import made_once, wait_until

STAGES = ("data", "reference", "train", "sample", "evaluate", "report")


class Edit(NamedTuple):
    """A replacement in a file."""

    file: str
    old: str
    new: str

    def apply(self, folder: Path) -> None:
        text = (folder / self.file).read_text()
        assert self.old in text
        (folder / self.file).write_text(text.replace(self.old, self.new))

    def revert(self, folder: Path) -> None:
        self._replace(old=self.new, new=self.old).apply(folder)


LOSS = Edit("diffusion/process/losses.py", "(target - predicted).square()", "(target - predicted).abs()")
SAMPLER = Edit("diffusion/sample/ddim.py", "return x_prev, x0_hat\n", "return 1.1 * x_prev, x0_hat\n")
EXTRACTOR = Edit("diffusion/evaluate/features/effnet.py", "- 127) / 128", "- 126) / 128")


def run_python(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start Python in the folder, with the folder's code, with stderr on stdout."""
    env = {**own_code(folder), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    return start_python(folder, *arguments, env=env, stderr=subprocess.STDOUT)


def finished(process: "subprocess.Popen[str]") -> str:
    """Return the output of a process that must succeed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def results(folder: Path) -> dict[str, object]:
    """Return the outputs of every stage in dvc.lock."""
    stages = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    assert set(stages) == set(STAGES)
    return {name: [(out["path"], out["md5"]) for out in stage["outs"]] for name, stage in stages.items()}


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which every stage has run."""

    def make(folder: Path) -> None:
        small_project(folder / "project", sample={"num_images": 12})
        finished(run_python(folder / "project", "-m", "dvc", "repro"))

    return made_once(tmp_path_factory, "edits", make) / "project"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of the original."""
    return shutil.copytree(original, tmp_path / "project")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "changes"),
    [
        (LOSS, ("train", "sample", "evaluate", "report")),
        (SAMPLER, ("sample", "evaluate", "report")),
        (EXTRACTOR, ("reference", "evaluate", "report")),
    ],
    ids=["loss", "sampler", "extractor"],
)
def test_edit_reruns_exactly_the_affected_stages(folder: Path, edit: Edit, changes: tuple[str, ...]) -> None:
    before = results(folder)
    edit.apply(folder)
    output = finished(run_python(folder, "-m", "dvc", "repro"))
    after = results(folder)
    assert tuple(stage for stage in STAGES if after[stage] != before[stage]) == changes
    restart = "the training's code has changed in process/losses.py since step 12"
    assert (restart in output) == (edit is LOSS)


@pytest.mark.slow
def test_keep_resumes_with_changed_code_and_the_model_records_both_versions(folder: Path) -> None:
    first = read_artefact(folder / "models/model.safetensors")
    rate = "rate = rate * (step + 1)"
    Edit("diffusion/train/lr_schedule.py", rate, rate.replace("= rate", "= 3 * rate")).apply(folder)
    output = finished(run_python(folder, "-m", "cli.entry", "stage", "train", "--keep"))
    assert "resuming after step 12 of 12" in output
    assert "the code has changed since these steps" in output
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


def edited_meanwhile(folder: Path, *edits: Edit) -> tuple[int, str]:
    """Make edits while `dvc repro train` trains; return the exit code and the output."""
    for name in ("begun", "edited"):
        (folder / name).unlink(missing_ok=True)
    process = run_python(folder, "-m", "dvc", "repro", "--single-item", "train")
    wait_until(lambda: (folder / "begun").exists() or process.poll() is not None, 120)
    for edit in edits:
        edit.apply(folder)
    (folder / "edited").touch()
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


RUN_TRAIN = "import asyncio; from flows.pipeline_steps import run_step; asyncio.run(run_step('train', False))"
STEPS = "MAX_BAD_STEPS = 5"


@pytest.mark.slow
def test_edits_while_a_stage_runs_are_not_recorded_as_its_inputs(folder: Path) -> None:
    """Also a model that DVC recorded with another rate is trained again."""
    for made in ("runs/train", ".dvc/cache/runs"):
        shutil.rmtree(folder / made)
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    lock["stages"] = {"data": lock["stages"]["data"]}
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock))
    begin = "    training = trainer.lead("
    Edit("cli/stages/train_stage.py", begin, f"{WAIT}\n{begin}").apply(folder)
    rate = Edit("params.yaml", "rate: 0.002", "rate: 0.5")
    steps = Edit("diffusion/train/loop.py", STEPS, "MAX_BAD_STEPS = 6")
    code, output = edited_meanwhile(folder, rate, steps)
    assert code != 0
    assert "changed while the stage train ran (train.lr.rate 0.002 → 0.5, diffusion/train/loop.py)" in output
    assert "train" not in yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    rate.revert(folder)
    steps.revert(folder)
    code, output = edited_meanwhile(folder, steps._replace(new=f"# Some.\n{STEPS}"))
    assert code == 0, output
    assert "resuming after step 12 of 12" in output

    rate.apply(folder)
    finished(run_python(folder, "-m", "dvc", "commit", "--force", "train"))
    output = finished(run_python(folder, "-c", RUN_TRAIN))
    assert "==> train: up to date\n" in output
    assert "other settings (train.lr.rate 0.002 → 0.5): training again" in output
    assert "train.lr.rate" not in finished(run_python(folder, "-c", RUN_TRAIN))
