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
from diffusion.system.params import load_section
from diffusion.system.registry import load_package, load_reference
from diffusion.system.section import Section

ENTRIES = 'TABLE = {}\nTABLE["cube"] = "plugins.data.cube:SIDE"\n'
FILES = {
    "params.yaml": "train: {seed: 1}\n",
    "plugins/__init__.py": ENTRIES,
    "plugins/data/cube.py": "SIDE = 3\n",
    "models/model.safetensors": "weights 1\n",
}
GRAPH = {"deps": ["models", "plugins/data", "missing"], "params": ["train"]}


class Train(Section):
    """A section of params.yaml."""

    seed: int


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with the stage `cook`, as the working directory, and without the plugins of this process."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "plugins"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"cook": GRAPH}}))
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    module_digests.cache_clear()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "plugins"]:
        del sys.modules[name]
    module_digests.cache_clear()


def write(name: str, text: str) -> None:
    """Replace a file by one of the same time in seconds, which .pyc files are keyed by."""
    before = os.stat(name)
    Path("new").write_text(text)
    os.utime("new", (before.st_atime, int(before.st_mtime)))
    os.replace("new", name)


def use() -> tuple[int, int]:
    """Use every input, as a stage does after its start; return the values."""
    load_package(Path.cwd())
    return load_section("train", Train).seed, load_reference("plugins.data.cube:SIDE")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("params.yaml", "seed: 1", "seed: 7", "train.seed 7 → 1"),
        ("plugins/__init__.py", ":SIDE", ":EDGE", "plugins/__init__.py"),
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
    refused = pytest.raises(InputsChanged, match=rf"cook ran \({message}\)")
    with refused as caught, unchanged_inputs("cook"):
        write(name, FILES[name].replace(old, new))
        used = use()
        write(name, FILES[name])
    assert caught.value.exit_code == 75
    assert used == (7 if "7" in new else 1, 4 if "4" in new else 3)
    code = hashlib.sha256(normalized_syntax(ast.parse(f"SIDE = {used[1]}")).encode()).hexdigest()
    assert module_digests("plugins.data.cube") == {"plugins.data.cube": code[:16]}


def test_edits_that_were_not_used_or_change_no_result_are_accepted(project: Path) -> None:
    os.link("models/model.safetensors", "twice")
    with unchanged_inputs("cook"):
        write("params.yaml", "train: {seed: 7}")
        write("plugins/data/cube.py", "SIDE = 4")
        write("params.yaml", FILES["params.yaml"])
        write("plugins/data/cube.py", FILES["plugins/data/cube.py"])
        assert use() == (1, 3)
        write("params.yaml", "# A comment.\ntrain: {seed: 1}\nsample: {}")
        write("plugins/data/cube.py", "# A comment.\nSIDE = 3")
        write("plugins/__init__.py", f'TABLE = {{}}\nTABLE["new"] = 1\n{ENTRIES}')
        Path("plugins/data/.cube.py.swp").touch()  # an editor's
        Path("models/.DS_Store").touch()
        os.link("twice", "thrice")  # as DVC links its cache in another clone
