"""The stages of a run, and the code of each as one input for DVC: code.yaml has a digest for each stage.

The code of a stage is what its module in cli/stages/ imports from diffusion/, what the registries of its
sections name, plugins included, and the templates and YAML files next to these modules. Comments, docstrings
and messages do not count (diffusion/code_digest.py). The packages cli, flows, serving and tracking are left
out: they run, watch and record, and change no result.
"""

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from diffusion.code_digest import (
    PACKAGE,
    ROOT,
    ModuleDigests,
    entry_text,
    imported_modules,
    module_file,
    parse_module,
    syntax_digest,
)
from diffusion.layout import CODE, GRAPH, RUNS, dvc_stages
from diffusion.system.checksums import read_json
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import read_regular, write_json, write_text
from diffusion.system.params import read_mapping
from diffusion.system.registry import PLUGINS, REGISTRIES, Registry, reference_module

HEADER = "# A digest of each stage's code, by `diffctl stage code`. Commit it with your project.\n"
FACTS = RUNS / "code.json"
VERSION_MODULE = f"{PACKAGE}.version"  # left out, so that a new version of equal code makes nothing stale
MAX_SOURCE = 2**20  # bytes of a module
# The stages of dvc.yaml in topological order, and the sections with the registries that each builds from.
STAGES = {
    "data": ("data",),
    "reference": ("evaluate",),
    "train": ("model", "process", "train"),
    "sample": ("model", "process", "sample"),
    "evaluate": ("evaluate",),
    "report": (),
}
# Of the code that computes the facts of modules.
ALGORITHM = hashlib.sha256(
    b"".join(file.read_bytes() for file in (Path(__file__), ROOT / PACKAGE / "code_digest.py"))
).digest()
NAMED = re.compile(rf"({PACKAGE}|{PLUGINS})(\.\w+)+(:\w+)?")  # a module, or an object of it
TEMPLATES = (".j2", ".css", ".yaml")  # .yaml: published figures
SOURCES = (".py", *TEMPLATES)
VISIBLE = "[!.]*"  # no lock files of editors


class ModuleFacts(NamedTuple):
    """A module's digest, the names that it imports or refers to, and whether it has code."""

    digest: str
    names: list[str]
    has_code: bool


class StageCode:
    """The code of stages. `facts` are of earlier calls, by the name and a SHA-256 of source and algorithm."""

    def __init__(self, facts: dict[str, ModuleFacts]) -> None:
        self.facts = facts
        self.used: dict[str, ModuleFacts] = {}
        self._of = cache(self._read)
        self._file = cache(module_file)

    def digest(self, stage: str) -> str:
        """Return 16 hex digits: equal if no edit changed the stage's code."""
        modules = self.modules(stage)
        lines = [f"{name} {digest}" for name, digest in modules.items()]
        folders = {file.parent for name in modules if (file := self._file(name))}
        files = (file for folder in folders for file in folder.glob(VISIBLE))
        templates = (file for file in files if file.suffix in TEMPLATES)
        lines += [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in templates]
        for registry in self._registries(stage):
            lines += [f"{registry.key} {name} {entry_text(registry[name])}" for name in registry.plugins]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]

    def modules(self, stage: str) -> ModuleDigests:
        """Return the digests of the modules of a stage's code, as their files are now."""
        todo = self._named(self._of(f"cli.stages.{stage}_stage").names)
        for registry in self._registries(stage):
            todo += self._named(name for entry in registry.values() for name in _references(entry))
        found: ModuleDigests = {}
        while todo:
            name = todo.pop()
            if name not in found:
                found[name] = self._of(name).digest
                todo += self._named(self._of(name).names)
        return found

    def _registries(self, stage: str) -> list[Registry[Any]]:
        return [registry for registry in REGISTRIES if registry.key.partition(".")[0] in STAGES[stage]]

    def _named(self, names: Iterable[str]) -> list[str]:
        """Return the named modules of the library and of plugins, with packages that have code."""
        found = []
        for name in names:
            parts = reference_module(name).split(".")
            if parts[0] in (PACKAGE, PLUGINS):
                for length in range(2, len(parts) + 1):
                    module = ".".join(parts[:length])
                    file = None if module == VERSION_MODULE else self._file(module)
                    if file and (file.name != "__init__.py" or self._of(module).has_code):
                        found.append(module)
        return found

    def _read(self, name: str) -> ModuleFacts:
        file = self._file(name)
        assert file is not None, f"there is no module {name}"
        source = read_regular(file, MAX_SOURCE)
        key = f"{name} {hashlib.sha256(ALGORITHM + source).hexdigest()}"
        self.used[key] = self.facts.get(key) or _facts(parse_module(name, file, source))
        return self.used[key]


def _facts(tree: ast.Module) -> ModuleFacts:
    """Return the facts of a module. Texts that name a module count, except in the tables of registries."""
    names = set(imported_modules(tree))
    if not any(isinstance(node, ast.AnnAssign) and _is_registry(node) for node in tree.body):
        texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        names |= {text for text in texts if isinstance(text, str) and NAMED.fullmatch(text)}
    ours = sorted(name for name in names if name.partition(".")[0] in (PACKAGE, PLUGINS))
    return ModuleFacts(syntax_digest(tree), ours, len(tree.body) > 1)


def _is_registry(node: ast.AnnAssign) -> bool:
    return ast.unparse(node.annotation).startswith("Registry[")


def _references(entry: Any) -> Iterator[str]:
    """Yield the modules and objects that an entry names, or the module of an entry that is a function."""
    values = [getattr(entry, one.name) for one in fields(entry)] if is_dataclass(entry) else []
    values.append(entry.module if hasattr(entry, "module") else entry.__module__)
    yield from (value for value in values if isinstance(value, str) and NAMED.fullmatch(value))


@contextmanager
def read_stage_code() -> Iterator[StageCode]:
    """Return the code of stages; what is known of modules is remembered in runs/."""
    import_module(f"{PACKAGE}.config")  # with all registries
    try:
        known = read_json(FACTS, dict[str, ModuleFacts])
    except (DiffctlError, FileNotFoundError):  # a damaged file is replaced
        known = {}
    code = StageCode(known)
    yield code
    if not code.used.keys() <= known.keys():
        FACTS.parent.mkdir(exist_ok=True)
        write_json(FACTS, code.used)


def source_state() -> int:
    """Return a hash of the names, sizes and times of the files of all stages' code."""
    folders = (ROOT / PACKAGE, ROOT / "cli/stages", Path(PLUGINS))
    files = (file for folder in folders for file in folder.rglob(VISIBLE) if file.suffix in SOURCES)
    states = set()
    for file in files:
        with suppress(FileNotFoundError):  # removed meanwhile
            states.add((file, file.stat().st_size, file.stat().st_mtime_ns))
    return hash(frozenset(states))


def write_stage_code() -> None:
    """Write code.yaml, unless it is up to date."""
    with read_stage_code() as code:
        # Quoted, since some digests are numbers to YAML.
        text = HEADER + "".join(f'{stage}: "{code.digest(stage)}"\n' for stage in STAGES)
    if not CODE.exists() or CODE.read_text(encoding="utf-8") != text:
        write_text(CODE, text)


def recorded_digest(stage: str) -> str | None:
    """Return the digest of a stage in code.yaml, None without one; UsageError for a damaged file."""
    try:
        return read_mapping(CODE).get(stage) if CODE.is_file() else None
    except DiffctlError as error:
        raise UsageError(f"{error}: `diffctl stage code` writes it again") from None


def pipeline_stages() -> list[str]:
    """Return the stages to run, each after those that it depends on, without `code`.

    Added stages are those of the root's dvc.yaml, and what they or the pipeline depend on in others. If DVC
    cannot read them they are left out: the first stage to run reports its error.
    """
    if dvc_stages().keys() <= {*STAGES, "code"}:
        return list(STAGES)  # DVC's graph takes a second
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage import PipelineStage
    from networkx import dfs_postorder_nodes

    try:
        with Repo(".") as repo:
            graph = repo.index.graph
    except DvcException:
        return list(STAGES)
    stages = {stage.addressing: stage for stage in graph if isinstance(stage, PipelineStage)}
    ours = [name for name, stage in stages.items() if stage.path_in_repo == str(GRAPH)]
    ordered = {
        before.addressing: None
        for name in (*STAGES, *ours)
        if name in stages
        for before in dfs_postorder_nodes(graph, stages[name])
        if before.addressing in stages
    }
    return [name for name in (ordered | dict.fromkeys(STAGES)) if name != "code"]
