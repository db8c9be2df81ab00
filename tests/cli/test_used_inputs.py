"""A stage ends only if its inputs are the ones that it used, whatever they were meanwhile."""

import ast
import hashlib
import json
import os
import py_compile
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.stages.used_inputs import InputsChanged, unchanged_inputs
from diffusion.code_digest import module_digests, normalized_syntax
from diffusion.data.data_config import SOURCES
from diffusion.layout import CODE
from diffusion.system.errors import UsageError
from diffusion.system.params import load_section
from diffusion.system.registry import load_package, load_reference
from diffusion.system.section import Section
from flows.stage_code import StageCode, recorded_digest, source_state, write_stage_code

ENTRIES = """
from diffusion.data.data_config import SOURCES, SourceEntry
SOURCES["cube"] = SourceEntry("plugins.data.cube:SIDE")
"""
FILES = {
    "params.yaml": "train: {seed: 1}\n",
    "plugins/__init__.py": ENTRIES,
    "plugins/data/cube.py": "SIDE = 3\n",
    "models/model.safetensors": "weights 1\n",
}
GRAPH = {"deps": ["models", "missing"], "params": ["train", {"code.yaml": ["data"]}]}


class Train(Section):
    """A section of params.yaml."""

    seed: int


def forget_plugins() -> None:
    """Unload the plugins of this process, with their entry."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "plugins"]:
        del sys.modules[name]
    SOURCES.data.pop("cube", None)
    module_digests.cache_clear()


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is remembered of modules, for all tests."""
    return tmp_path_factory.mktemp("facts") / "code.json"


@pytest.fixture
def project(tmp_path: Path, facts: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with the stage `data`, run by DVC, as the working directory, and its plugins alone."""
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "plugins"}
    forget_plugins()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "data")
    monkeypatch.setattr("flows.stage_code.FACTS", facts)
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"data": GRAPH}}))
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    load_package(tmp_path)
    write_stage_code()
    yield tmp_path
    forget_plugins()
    sys.modules.update(kept)


def write(name: str, text: str) -> None:
    """Replace a file by one of the same time in seconds, which .pyc files are keyed by."""
    before = os.stat(name)
    Path("new").write_text(text)
    os.utime("new", (before.st_atime, int(before.st_mtime)))
    os.replace("new", name)


def use() -> tuple[int, int]:
    """Use every input, as a stage does after its start; return the values."""
    return load_section("train", Train).seed, load_reference("plugins.data.cube:SIDE")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("params.yaml", "seed: 1", "seed: 7", "train.seed 7 → 1"),
        ("plugins/data/cube.py", "= 3", "= 4", "plugins/data/cube.py"),
        ("models/model.safetensors", "1", "2", "models/model.safetensors"),
    ],
)
def test_edit_that_was_used_and_undone_is_refused(
    project, name: str, old: str, new: str, message: str
) -> None:
    os.utime(name, (1, 1))
    if name.endswith(".py"):
        py_compile.compile(name)  # keyed by time and size, which the edit keeps
    refused = pytest.raises(InputsChanged, match=rf"data ran \({message}\)")
    with refused as caught, unchanged_inputs("data"):
        write(name, FILES[name].replace(old, new))
        used = use()
        write(name, FILES[name])
    assert caught.value.exit_code == 75
    assert used == (7 if "7" in new else 1, 4 if "4" in new else 3)
    code = hashlib.sha256(normalized_syntax(ast.parse(f"SIDE = {used[1]}")).encode()).hexdigest()
    assert module_digests("plugins.data.cube") == {"plugins.data.cube": code[:16]}


def test_code_that_differs_from_code_yaml_is_refused(project: Path) -> None:
    refused = pytest.raises(InputsChanged, match=r"changed since code.yaml was written: run `dvc repro`")
    for name, old, new in (("plugins/data/cube.py", "3", "4"), ("plugins/__init__.py", ":SIDE", ":EDGE")):
        forget_plugins()
        write(name, FILES[name].replace(old, new))
        load_package(project)
        write(name, FILES[name] if name.endswith("__init__.py") else FILES[name].replace(old, new))
        with refused, unchanged_inputs("data"):
            pass
        write(name, FILES[name])
    write_stage_code()
    with pytest.raises(InputsChanged, match=r"data ran \(code.yaml\)"), unchanged_inputs("data"):
        write("code.yaml", "data: '1'")


def test_facts_of_modules_by_another_algorithm_are_not_reused(project: Path, monkeypatch) -> None:
    (code := StageCode({})).digest("data")
    monkeypatch.setattr("flows.stage_code.ALGORITHM", b"of another version")
    (other := StageCode(code.used)).digest("data")
    assert code.used.keys().isdisjoint(other.used)


def test_edits_that_were_not_used_or_change_no_result_are_accepted(project: Path) -> None:
    os.link("models/model.safetensors", "twice")
    with unchanged_inputs("data"):
        write("params.yaml", "train: {seed: 7}")
        write("plugins/data/cube.py", "SIDE = 4")
        write("params.yaml", FILES["params.yaml"])
        write("plugins/data/cube.py", "# A comment.\nSIDE = 3")
        assert use() == (1, 3)
        write("params.yaml", "# A comment.\ntrain: {seed: 1}\nsample: {}")
        Path("models/.DS_Store").touch()
        write("plugins/data/cube.py", "SIDE = 4")  # code.yaml has the digest of what was loaded
        os.link("twice", "thrice")  # as DVC links its cache in another clone


@pytest.mark.parametrize("digest", ["7028840848183254", "0123456701234567", "12345e6789012345"])
def test_a_digest_that_looks_like_a_number_stays_text(project: Path, monkeypatch, digest: str) -> None:
    monkeypatch.setattr("flows.stage_code.StageCode.digest", lambda self, stage: digest)
    write_stage_code()
    assert recorded_digest("data") == digest


def test_the_lock_file_of_an_editor_is_no_code(project: Path) -> None:
    Path("plugins/sample").mkdir(parents=True, exist_ok=True)
    before = source_state()
    Path("plugins/sample/.#mine.py").symlink_to("somebody@host.1234")
    assert source_state() == before
    Path("plugins/sample/mine.py").write_text("MINE = 1\n")
    assert source_state() != before


def test_a_damaged_code_yaml_is_refused_with_its_remedy(project: Path) -> None:
    CODE.write_text("<<<<<<< HEAD\ntrain: 1\n")
    with pytest.raises(UsageError, match=r"code\.yaml is not readable as YAML: .*`diffctl stage code`"):
        recorded_digest("train")
