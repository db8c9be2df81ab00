"""A new method is one file and one registry entry: docs/extending.md applied to a copy of the project."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

from diffusion.code_digest import code_digest
from diffusion.evaluate.features.reference_features import extraction_code
from diffusion.images.store import open_store
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.cell_images import sampling_code
from diffusion.sample.network_files import NetworkArtefacts
from diffusion.train.plan import DenoiserPlan, training_code
from tests import registries
from tests.conftest import ROOT, environment
from tests.helpers.networks import artefact_of, spec_of
from tests.helpers.small import own_code, small_project

BLOCK = re.compile(
    r"^```python\n# (in (?P<registry>\w+) of )?(?P<file>\S+\.py)\n(?P<code>.*?)^```$", re.M | re.S
)
ADDED = ["sample/trapezoid", "model/tiny", "process/straight", "data/sources/rings"]
TESTS = ["sample/test_trapezoid", "model/test_tiny", "process/test_straight", "data/test_rings"]
CODE = [f"diffusion/{name}.py" for name in ADDED]
TEST_FILES = [f"tests/{name}.py" for name in TESTS]
PIXELS = """EXTRACTORS["pixels"] = ExtractorSpec(
    "pixels", "diffusion.evaluate.features.pixels:build", 4, "means, to 4", 48, "fd_pixels", "kd_pixels"
)"""
EXPERIMENT: dict[str, dict[str, Any]] = {
    "data": {"name": "rings", "count": 200},
    "model": {"name": "tiny", "width": 6},
    "process": {"schedule": "straight", "most": 0.999, "prediction": "flow"},
    "train": {"eval_every": 6, "eval_images": 20, "eval_steps": 2},
    "sample": {"sampler": "trapezoid", "sampler_options": {"correct": True}, "num_images": 20},
    "sweep": {"steps": [2, 3], "eta": [0.0]},
    "evaluate": {"extractor": "pixels"},
}
STAGES = """
from cli.main import app
for stage in ("data", "reference", "train", "sample", "evaluate", "report"):
    app(["stage", stage], standalone_mode=False)
"""
DIGESTS = """
from tests.test_extending import digests
print(*digests())
"""


def digests() -> list[str]:
    """Return the code digests that identify work with the project's own entries."""
    artefact, process = artefact_of(spec_of()), ProcessConfig()
    code = [training_code(DenoiserPlan, process, artefact.network)]
    code += [
        sampling_code(SampleSettings(sampler=name), NetworkArtefacts(artefact))
        for name in ("ddim", "dpm-solver++")
    ]
    return [*map(code_digest, code), extraction_code(EXTRACTORS["effnet-lite0-64"])]


def add_entry(file: Path, registry: str, entry: str) -> None:
    """Insert an entry at the beginning of a registry."""
    text = file.read_text()
    assert text.count(f"\n{registry} = {{\n") == 1
    file.write_text(text.replace(f"\n{registry} = {{\n", f"\n{registry} = {{\n{entry}"))


def run(folder: Path, *command: str) -> str:
    """Run Python in the project with the project's own code, and return its stdout."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment(own_code(folder)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the additions in the docs and a throwaway extractor."""
    folder = small_project(tmp_path_factory.mktemp("extending") / "project")
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    blocks = list(BLOCK.finditer((ROOT / "docs/extending.md").read_text()))
    files = [block["file"] for block in blocks if block["registry"] is None]
    assert files == [file for pair in zip(CODE, TEST_FILES, strict=True) for file in pair]
    for block in blocks:
        if block["registry"]:
            add_entry(folder / block["file"], block["registry"], block["code"])
        else:
            (folder / block["file"]).write_text(block["code"])
    shutil.copy(ROOT / "tests/helpers/throwaway/pixels.py", folder / "diffusion/evaluate/features")
    with open(folder / "diffusion/protocol/extractors.py", "a", encoding="utf-8") as file:
        file.write(f"\n\n{PIXELS}\n")
    return folder


@pytest.mark.slow
def test_code_in_the_docs_passes_its_tests_mypy_and_ruff(project: Path) -> None:
    run(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TEST_FILES)
    run(project, "-m", "mypy", *CODE)
    run(project, "-m", "ruff", "check", *CODE, *TEST_FILES)
    run(project, "-m", "ruff", "format", "--check", *CODE, *TEST_FILES)


@pytest.mark.slow
def test_new_entry_does_not_change_digests_of_other_entries(project: Path) -> None:
    assert run(project, "-c", DIGESTS).split() == digests()


@pytest.mark.slow
def test_pipeline_runs_with_only_new_entries(project: Path) -> None:
    values = yaml.safe_load((project / "params.yaml").read_text())
    for section, keys in EXPERIMENT.items():
        values[section] = keys if section == "model" else {**values[section], **keys}
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    run(project, "-c", STAGES)
    train = open_store(project / "data/prepared/train")
    assert (len(train), train.meta["name"], train.meta["options"]) == (180, "rings", {"count": 200})
    with safe_open(project / "models/model.safetensors", framework="pt") as file:
        description = file.metadata()["diffctl"]
    for text in ('"name":"tiny"', '"width":6', '"schedule":"straight"', '"most":0.999'):
        assert text in description
    scores = yaml.safe_load((project / "metrics/scores.json").read_text())
    assert scores["extractor"] == "pixels"
    for name, steps in (("steps2-eta0", 2), ("steps3-eta0", 3)):
        cell = scores["cells"][name]
        assert cell["card"]["nfe"] == 2 * steps - 1
        assert {"fd_pixels", "kd_pixels", "precision_pixels", "excess"} <= cell["scores"].keys()
        assert not [score for score in cell["scores"] if score.startswith("is")]


OPTION_EDITS = {  # every file that a new sampling option touches: its declaration and its effect
    "diffusion/protocol/settings.py": (
        "    clip: Annotated[\n",
        """    temperature: Annotated[
        GuidanceScale,
        Option(
            "Scales the added noise.",
            label="τ",
            phrase="τ = {}",
            no_effect=(NoEffect("eta", "at {option} 0", _equal_to(0)),),
        ),
    ] = 1.0
    clip: Annotated[
""",
    ),
    "diffusion/sample/ddim.py": (
        "    return Ddim(settings.eta, ",
        "    return Ddim(settings.eta * settings.temperature, ",
    ),
}
OPTION_SCRIPT = """
import json
from types import SimpleNamespace
from typer.testing import CliRunner
from cli.main import app
from diffusion.check.params_schema import params_schema
from diffusion.config import parse
from diffusion.protocol.grid import cell_settings, describe_cell, grid, settings_card
from diffusion.protocol.settings import OPTIONS
from diffusion.sample.network_files import NetworkArtefacts
from serving.playground.choices import _control
from serving.requests import HTTP_OPTIONS, SampleRequest
from tests.conftest import params
from tests.helpers.networks import artefact_of, spec_of
from tests.helpers.scores_document import document
from tracking.registry.pyfunc_model import Request

config = parse(params(sweep={"steps": [5], "eta": [0.0, 1.0], "temperature": [0.5, 1.0]}), "test")
cells = grid(config.sample, config.sweep)
cards = [settings_card(cell_settings(config.sample, cell)) for cell in cells]
help = [CliRunner().invoke(app, [*command, "--help"]).output for command in (["sample"], ["sweep"])]
schema = params_schema()["$defs"]
print(json.dumps({
    "cells": [cell.name for cell in cells],
    "text": describe_cell(cells[1].axes),
    "cards": [card.get("temperature") for card in cards],
    "params": ["temperature" in schema[name]["properties"] for name in ("SampleConfig", "SweepConfig")],
    "cli": ["--temperature" in text for text in help],
    "http": SampleRequest.model_json_schema()["properties"]["temperature"]["description"],
    "registered": "temperature" in Request.model_fields,
    "control": _control(HTTP_OPTIONS["temperature"], artefact_of(spec_of())),
    "heading": OPTIONS["temperature"].label,
}))
"""


@pytest.mark.slow
def test_new_sampling_option_needs_only_a_declaration_and_its_effect(tmp_path: Path) -> None:
    folder = small_project(tmp_path / "project")
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name, (old, new) in OPTION_EDITS.items():
        text = (folder / name).read_text()
        assert text.count(old) == 1
        (folder / name).write_text(text.replace(old, new))
    assert len(OPTION_EDITS) == 2
    found = json.loads(run(folder, "-c", OPTION_SCRIPT).splitlines()[-1])
    assert found["cells"] == ["steps5-eta0", "steps5-eta1-temperature0.5", "steps5-eta1-temperature1"]
    assert found["text"] == "5 steps, η = 1, τ = 0.5"
    assert found["cards"] == [None, 0.5, None], "a card omits a new option's default: old cards stay equal"
    assert found["params"] == [True, True]
    assert found["cli"] == [True, True]
    assert found["http"] == "Scales the added noise."
    assert found["registered"] is True
    control = found["control"]
    assert (control["label"], control["kind"], control["most"]) == ("Temperature τ", "number", 1000)
    assert control["off"] == [{"option": "eta", "values": [0]}]
    assert found["heading"] == "τ"


def test_docs_list_all_registry_entries() -> None:
    text = registries.DOCS.read_text(encoding="utf-8")
    assert registries.with_listing(text) == text, "run `python -m tests.registries --write`"
