"""The package `plugins` of a project: entries in registries, errors in one sentence, names."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from diffusion.check.dependency_checks import check_plugins
from diffusion.check.findings import Project
from diffusion.code_digest import changed_modules, code_digest, code_of, module_digests, plugin_card
from diffusion.system import registry
from diffusion.system.errors import UsageError
from diffusion.system.registry import BuilderEntry, Registry, load_package, load_reference, plugins_folder

Write = Callable[..., Path]


@dataclass(frozen=True)
class Entry(BuilderEntry):
    builder: str
    sides: Callable[[int], int] | None = None
    edges: Callable[[int], int] | None = None


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> Registry[Entry]:
    """A registry with one entry, which plugins can import from this module."""
    monkeypatch.setattr(registry, "REGISTRIES", [])
    made: Registry[Entry] = Registry("data.shape", "a shape", {"ring": Entry("math:pi")})
    monkeypatch.setattr("diffusion.check.dependency_checks.REGISTRIES", [made])
    monkeypatch.setattr(f"{__name__}.SHAPES", made, raising=False)
    return made


@pytest.fixture
def write(tmp_path: Path, shapes: Registry[Entry]) -> Iterator[Write]:
    """Write the files of a project's plugins; the package that this process has comes back at the end."""
    own = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "plugins"}

    def write(entries: str = "", **modules: str) -> Path:
        (tmp_path / "plugins/data").mkdir(parents=True)
        text = f"from {__name__} import SHAPES, Entry\n{entries}\n"
        (tmp_path / "plugins/__init__.py").write_text(text)
        for name, code in modules.items():
            (tmp_path / f"plugins/data/{name}.py").write_text(code)
        return tmp_path

    yield write
    for name in list(sys.modules):
        if name.partition(".")[0] == "plugins":
            del sys.modules[name]
    sys.modules.update(own)


def test_entries_are_added_and_their_code_is_imported_when_it_is_used(write, shapes) -> None:
    root = write('SHAPES["cube"] = Entry("plugins.data.cube:SIDE")', cube="SIDE = 3")
    load_package(root)
    load_package(root)
    assert shapes.plugins == ["cube"]
    assert shapes.module("cube") == "plugins.data.cube"
    assert "plugins.data.cube" not in sys.modules
    assert load_reference(shapes["cube"].builder) == 3
    assert plugins_folder() == root / "plugins"


def test_project_without_entries_has_no_plugins(tmp_path: Path, write: Write) -> None:
    load_package(tmp_path)
    (tmp_path / "plugins").mkdir()
    load_package(tmp_path)
    assert "plugins" not in sys.modules
    load_package(write(cube="SIDE = 3"))
    assert plugins_folder() is None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("raise SystemExit", r"^plugins/__init__.py, line 2: SystemExit: correct it"),
        ("1 / 0", r"^plugins/__init__.py, line 2: ZeroDivisionError: .*: correct it, or remove its entry"),
        ("import plugins.data.broken", r"^plugins/data/broken.py, line 2: SyntaxError: "),
        ("import plugins.data.missing", r"^plugins/__init__.py, line 2: ModuleNotFoundError: "),
        ('SHAPES["ring"] = Entry("math:e")', r"line 2: data.shape: the name ring is taken"),
        ('SHAPES["a b"] = Entry("math:e")', r"line 2: data.shape: a b is no name"),
        ('SHAPES["a"] = Entry("plugins.x.a:b")', r"is in plugins.x.a: move it to a module in plugins/data/"),
        ('SHAPES["a"] = Entry("plugins:a")', r"is in plugins: move it to a module in plugins/data/"),
    ],
)
def test_broken_entries_are_one_sentence(entries: str, message: str, write: Write) -> None:
    root = write(entries, broken="\ndef (")
    with pytest.raises(UsageError, match=message) as caught:
        load_package(root)
    assert "\n" not in str(caught.value)
    assert "plugins" not in sys.modules


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("plugins.data.cube:SIDE", r"^plugins/data/cube.py, line 1: NameError: "),
        ("plugins.data.cubes:SIDE", r"^plugins/__init__.py: ModuleNotFoundError: "),
        ("plugins.data:SIDE", r"^plugins/__init__.py: AttributeError: "),
    ],
)
def test_broken_code_is_one_sentence_when_it_is_used(reference: str, message: str, write: Write) -> None:
    load_package(write(cube="SIDE = side"))
    with pytest.raises(UsageError, match=message):
        load_reference(reference)


def test_digest_follows_imports_between_plugins_but_not_entries(write: Write) -> None:
    load_package(write("X = 1", sphere="from .area import PI\nimport plugins\n", area="PI = 3.14"))
    code = module_digests("plugins.data.sphere")
    assert code.keys() == {"plugins.data.sphere", "plugins.data.area"}
    assert changed_modules({}, code) == ["plugins/data/area.py", "plugins/data/sphere.py"]
    assert plugin_card("plugins", code) == {"plugins": code_digest(code)}
    assert plugin_card("plugins", {"diffusion.model.unet": "1"}) == {}


EDITS = {  # of the entry `Entry(CUBE, lambda n: n, times(2))`, and whether they change its digest
    "Entry(CUBE, (lambda n:  n), times(2))  # a comment": False,
    "Entry('plugins.data.cube:EDGE', lambda n: n, times(2))": True,
    "Entry(CUBE, lambda n: n + 1, times(2))": True,
    "Entry(CUBE, lambda n: n, times(3))": True,
    "Entry(CUBE, lambda n: n, None)": True,
}


def test_edits_of_an_entry_change_its_digest(write: Write, shapes: Registry[Entry]) -> None:
    imports = "from plugins.data.other import times\nCUBE = 'plugins.data.cube:SIDE'\n"
    root = write(imports, cube="SIDE = 3\n", other="def times(n):\n    return lambda m: n * m\n")
    entries, codes = (root / "plugins/__init__.py").read_text(), []
    for entry in ("Entry(CUBE, lambda n: n, times(2))", *EDITS):
        (root / "plugins/__init__.py").write_text(f"{entries}SHAPES['cube'] = {entry}\n")
        sys.modules.pop("plugins", None)
        shapes.data.pop("cube", None)
        load_package(root)
        codes.append(code_of([], [(shapes, "cube")]))
    first = codes[0]
    assert first.keys() >= {"plugins.data.cube", "plugins.__init__ data.shape cube"}
    assert [code != first for code in codes[1:]] == list(EDITS.values())
    assert {name for name in first if first[name] != codes[3][name]} == {"plugins.__init__ data.shape cube"}


def test_check_reports_code_that_cannot_be_imported(write: Write, shapes: Registry[Entry]) -> None:
    load_package(write('SHAPES["bad"] = Entry("plugins.data.bad:A")', bad="A = b"))
    (finding,) = check_plugins(Project(None))
    assert finding.level == "error"
    assert finding.message.startswith("data.shape bad: plugins/data/bad.py, line 1: NameError: ")


def test_folder_without_its_init_is_refused(tmp_path: Path, write: Write) -> None:
    root = write()
    (root / "plugins/__init__.py").rename(root / "plugins/entries.py")
    with pytest.raises(UsageError, match=r"plugins/__init__.py is missing"):
        load_package(root)
