"""A new method is one file and one entry in plugins/: docs/extending.md applied to a copy of the project."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffusion.images.store import open_store
from tests import registries
from tests.conftest import ROOT, run_python
from tests.helpers.small import commit, git, own_code, small_project
from tests.helpers.waiting import made_once

BLOCK = re.compile(r"^```python\n# (?P<file>\S+\.py)\n(?P<code>.*?)^```$", re.M | re.S)
THROWAWAY = ROOT / "tests/helpers/throwaway"
EXPERIMENT: dict[str, dict[str, Any]] = {
    "data": {"name": "rings", "count": 200},
    "model": {"name": "tiny", "width": 6},
    "process": {
        "schedule": "arc", "prediction": "unit-velocity", "t_sampler": "log-uniform", "stratified": True,
        "weighting": "sigmoid", "weighting_options": {"shift": 1.0},
        "loss": "uncertainty", "loss_options": {"waves": 16},
    },
    "train": {
        "eval_every": 6, "eval_images": 20, "eval_steps": 2, "optimizer": "lion",
        "lr": {"schedule": "exponential", "rate": 0.001, "end": 0.0001},
    },
    "sample": {
        "sampler": "trapezoid", "sampler_options": {"weight": 0.6}, "spacing": "cubic",
        "guidance": 0.5, "guidance_rule": "blurred", "num_images": 20,
    },
    "sweep": {"steps": [2, 3], "eta": [0.0]},
    "evaluate": {"extractor": "pixels"},
}  # fmt: skip
STAGES = """
import cli.entry
from cli.main import app
for stage in ("data", "reference", "train", "sample", "evaluate", "report"):
    app(["stage", stage], standalone_mode=False)
from tracking.registry.registered_models import register
print(register().promoted)
"""
CHECK = """
import cli.entry
from diffusion.check import check
from diffusion.config import load
for finding in check(load()):
    if finding.subject == "plugins":
        print(finding.level, finding.message)
"""
LOAD = """
import mlflow.pyfunc
model = mlflow.pyfunc.load_model("models:/diffctl-rings@champion")
print(len(model.predict([{"num": 2}])[0].images))
"""
DIGESTS_AFTER_EDITS = """
import json, os, sys
from pathlib import Path
import cli.entry
from diffusion.code_digest import code_digest
from diffusion.config import load
from diffusion.model.model_file import read_artefact
from diffusion.protocol.grid import cell_settings, grid
from diffusion.sample.sampling_card import sampling_card, sampling_code
from diffusion.sample.network_files import NetworkArtefacts
from diffusion.train.plan import DenoiserPlan, training_code

def digests():
    config, networks = load(), NetworkArtefacts(read_artefact(Path("models/model.safetensors")))
    settings = cell_settings(config.sample, grid(config.sample, config.sweep)[0])
    yield code_digest(training_code(DenoiserPlan, config.process, config.model))
    yield code_digest(sampling_code(settings, networks))
    yield sampling_card(settings, networks)["sampling_plugins"]

for file, old, new in json.loads(sys.argv[1]):
    path = Path(file)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    if not os.fork():  # digests are computed once a process
        print(*digests(), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
    path.write_text(text)
"""


def run(folder: Path, *command: str, code: int = 0, **variables: str) -> str:
    """Run Python in the project with the project's own code, and return its stdout, or stderr if it fails."""
    done = run_python(folder, *command, env=own_code(folder) | variables)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def extended_project(folder: Path) -> Path:
    """Make a copy of the project with the plugins in the docs and their tests in tests/helpers/throwaway."""
    small_project(folder)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    commit(folder, "before")
    for block in BLOCK.finditer((ROOT / "docs/extending.md").read_text()):
        (folder / block["file"]).write_text(block["code"])
    for file in THROWAWAY.glob("check_*.py"):
        shutil.copy(file, folder / "tests/plugins" / file.name.replace("check_", "test_"))
    return folder


def run_experiment(folder: Path) -> None:
    """Run the pipeline with only new entries and register the model."""
    project = extended_project(folder / "project")
    values = yaml.safe_load((project / "params.yaml").read_text())
    for section, keys in EXPERIMENT.items():
        values[section] = keys if section in ("model", "process") else {**values[section], **keys}
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    assert run(project, "-c", STAGES).splitlines()[-1] == "True"


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose pipeline has run with only new entries, with a registered model."""
    return made_once(tmp_path_factory, "extending", run_experiment) / "project"


@pytest.mark.slow
def test_code_in_the_docs_passes_its_tests_mypy_and_ruff(tmp_path: Path) -> None:
    project = extended_project(tmp_path / "project")
    changed = git(project, "status", "--porcelain", "--untracked-files=all").split("\n")
    files = [line[3:] for line in changed if line]
    assert all(file.startswith(("plugins/", "tests/plugins/")) for file in files), "an extension is no fork"
    run(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/plugins")
    run(project, "-m", "mypy", "plugins")
    run(project, "-m", "ruff", "check", "plugins", "tests/plugins")
    run(project, "-m", "ruff", "format", "--check", "plugins", "tests/plugins")


@pytest.mark.long
def test_pipeline_and_registered_model_have_only_new_entries(experiment: Path, tmp_path: Path) -> None:
    train = open_store(experiment / "data/prepared/train")
    assert (len(train), train.meta["name"], train.meta["options"]) == (180, "rings", {"count": 200})
    scores = yaml.safe_load((experiment / "metrics/scores.json").read_text())
    assert scores["extractor"] == "pixels"
    for name, steps in (("steps2-eta0", 2), ("steps3-eta0", 3)):
        card, measured = scores["cells"][name]["card"], scores["cells"][name]["scores"]
        assert card["nfe"] == 2 * (2 * steps - 1)
        assert {"sampling_plugins", "extractor_plugins"} <= card.keys()
        assert {"fd_pixels", "kd_pixels", "precision_pixels", "excess"} <= measured.keys()
        assert not [score for score in measured if score.startswith("is")]
    found = run(experiment, "-c", CHECK).splitlines()
    assert "ok sample.sampler trapezoid: plugins.sample.trapezoid" in found
    assert all(line.startswith("ok ") for line in found)
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{experiment / 'mlflow.db'}", "PYTHONPATH": ""}
    assert run(tmp_path, "-c", LOAD, **store).strip() == "2"
    arguments = ["sample", "--model", str(experiment / "models/model.safetensors"), "--out", "x.png"]
    refused = run(tmp_path, "-m", "cli.entry", *arguments, code=1, PYTHONPATH=str(experiment))
    assert "needs a plugin that is not here (network.name tiny, process.schedule arc" in refused


PLUGIN_EDITS = {  # whether the digests of training, sampling and the card change
    ("plugins/sample/trapezoid.py", "weight * (", "2 * weight * ("): [False, True, True],
    ("plugins/sample/blurred.py", "(x, 3, 1, 1", "(x, 5, 1, 2"): [False, True, True],
    ("plugins/process/log_uniform.py", "0.01", "0.02"): [True, False, False],
    ("plugins/process/uncertainty.py", "/ 4", "/ 5"): [True, False, False],
    ("plugins/process/unit_velocity.py", "0.5", "0.4"): [True, True, True],
    ("plugins/model/tiny.py", "/ 1000", "/ 100"): [True, True, True],
    ("plugins/model/tiny.py", "Two convolutions", "A few convolutions"): [False, False, False],
    ("plugins/data/rings.py", "0.7", "0.8"): [False, False, False],
}


@pytest.mark.long
def test_edit_of_a_plugin_changes_the_digests_of_what_uses_it(experiment: Path) -> None:
    unchanged = ("plugins/data/rings.py", "0.7", "0.7")
    edits = json.dumps([unchanged, *PLUGIN_EDITS])
    before, *after = map(str.split, run(experiment, "-c", DIGESTS_AFTER_EDITS, edits).splitlines())
    changes = [[one != other for one, other in zip(before, line, strict=True)] for line in after]
    assert dict(zip(PLUGIN_EDITS, changes, strict=True)) == PLUGIN_EDITS


@pytest.mark.long
def test_edit_of_a_plugin_after_the_training_is_reported(experiment: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(experiment, tmp_path / "project")

    def reports(file: str, old: str, new: str, *command: str) -> list[str]:
        (folder / file).write_text((folder / file).read_text().replace(old, new))
        done = run_python(folder, "-m", "cli.entry", *command, env=own_code(folder))
        assert done.returncode == 0, done.stderr
        return [line for line in done.stderr.splitlines() if "was trained" in line]

    sample, evaluate = ("sample", "--num", "1", "--out", "x.png"), ("stage", "evaluate")
    assert reports("plugins/process/log_uniform.py", "0.01", "0.02", *sample) == []
    edit = ("plugins/model/tiny.py", "/ 1000", "/ 100")
    (report,) = reports(*edit, *sample)
    assert report.startswith(
        "diffctl: plugins/model/tiny.py changed after models/model.safetensors was trained"
    )
    assert reports(*edit, *evaluate) == [report]


OPTION_EDITS = {  # every file that a new sampling option touches: its declaration and its effect
    "diffusion/protocol/sampling_options.py": (
        "    classes: Annotated[\n",
        """    temperature: Annotated[
        GuidanceScale,
        Option(
            "Scales the added noise.",
            label="τ",
            phrase="τ = {}",
            no_effect=(NoEffect("eta", "at {option} 0", equal_to(0)),),
        ),
    ] = 1.0
    classes: Annotated[
""",
    ),
    "diffusion/sample/ddim.py": (
        "    return Ddim(settings.eta, ",
        "    return Ddim(settings.eta * settings.temperature, ",
    ),
}
OPTION_SCRIPT = """
from types import SimpleNamespace
from typer.testing import CliRunner
from cli.main import app
from diffusion.check.params_schema import params_schema
from diffusion.config import parse
from diffusion.protocol.grid import cell_settings, describe_cell, grid, settings_card
from serving.playground.choices import _control
from serving.schemas import HTTP_OPTIONS, SampleRequest
from tests.conftest import params
from tests.helpers.networks import artefact_of, spec_of
from tracking.registry.pyfunc_model import Request

config = parse(params(sweep={"steps": [5], "eta": [0.0, 1.0], "temperature": [0.5, 1.0]}), "test")
cells = grid(config.sample, config.sweep)
names = [cell.name for cell in cells]
assert names == ["steps5-eta0", "steps5-eta1-temperature0.5", "steps5-eta1-temperature1"], names
assert describe_cell(cells[1].axes) == "5 steps, η = 1, τ = 0.5"
cards = [settings_card(cell_settings(config.sample, cell)).get("temperature") for cell in cells]
assert cards == [None, 0.5, None], "a card omits a new option's default: old cards stay equal"
for section in ("SampleConfig", "SweepConfig"):
    assert "temperature" in params_schema()["$defs"][section]["properties"]
for command in ("sample", "sweep"):
    assert "--temperature" in CliRunner().invoke(app, [command, "--help"]).output
described = SampleRequest.model_json_schema()["properties"]["temperature"]["description"]
assert described == "Scales the added noise."
assert "temperature" in Request.model_fields
control = _control(HTTP_OPTIONS["temperature"], SimpleNamespace(artefact=artefact_of(spec_of())))
assert (control["label"], control["kind"], control["most"]) == ("Temperature τ", "number", 1000)
assert control["off"] == [{"option": "eta", "values": [0]}]
"""


@pytest.mark.slow
def test_new_sampling_option_needs_only_a_declaration_and_its_effect(tmp_path: Path) -> None:
    folder = small_project(tmp_path / "project")
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name, (old, new) in OPTION_EDITS.items():
        text = (folder / name).read_text()
        assert text.count(old) == 1
        (folder / name).write_text(text.replace(old, new))
    run(folder, "-c", OPTION_SCRIPT)


def test_docs_list_all_registry_entries() -> None:
    text = registries.DOCS.read_text(encoding="utf-8")
    assert registries.with_listing(text) == text, "run `python -m tests.registries --write`"
