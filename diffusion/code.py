"""The code that decides numbers, by digest: what other code has made is not taken for this code's work.

A digest is of a module's syntax tree as diffusion/syntax.py writes it. Imports within this package are
followed, also those inside functions; what is named only by a registry's text is not, so that an entry that
was not chosen decides nothing. Modules in NEUTRAL change no number and are neither read nor followed.
"""

import ast
import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

from diffusion.section import Section
from diffusion.syntax import imported, normalised

ROOT = Path(__file__).parent.parent
PACKAGE = Path(__file__).parent.name

# Modules that decide no number, or only by values that stand in a fingerprint by themselves.
NEUTRAL = {
    "diffusion.allocator": "keeps freed memory",
    "diffusion.checkpoint": "writes and reads what others computed; a model's tensors have a digest",
    "diffusion.chosen": "its values stand in the fingerprint",
    "diffusion.classifier_plan": "its values stand in the fingerprint",
    "diffusion.code": "this",
    "diffusion.config": "its values stand in the fingerprint",
    "diffusion.data.cache": "names a folder",
    "diffusion.data.config": "its values stand in the fingerprint",
    "diffusion.data.download": "what comes is checked by its SHA-256",
    "diffusion.data.fetch": "what comes is checked by its SHA-256",
    "diffusion.data.kaggle": "what comes is listed with the data",
    "diffusion.data.problems": "lists what was left out",
    "diffusion.data.source_registry": "names modules, of which the chosen one is counted",
    "diffusion.devices": "holds a device",
    "diffusion.errors": "names what went wrong",
    "diffusion.evaluation.config": "its values stand in what is found by them",
    "diffusion.evaluation.specs": "names modules, of which the chosen one is counted with what stands there",
    "diffusion.evaluation.verified": "looks whether images changed",
    "diffusion.evaluation.weights": "what it reads is checked by its SHA-256",
    "diffusion.files": "writes whole files",
    "diffusion.layout": "names places",
    "diffusion.locks": "waits",
    "diffusion.memory": "chooses a micro-batch, which counts as rounding",
    "diffusion.model_config": "its values stand in the fingerprint",
    "diffusion.model_registry": "names modules, of which the chosen one is counted",
    "diffusion.params": "its values stand in the fingerprint",
    "diffusion.presets": "its values stand in the fingerprint",
    "diffusion.process_config": "its values stand in the fingerprint",
    "diffusion.process_registry": "names modules, of which the chosen one is counted",
    "diffusion.quartiles": "means for people",
    "diffusion.readings": "means for people",
    "diffusion.registry": "loads the module that is named",
    "diffusion.resolve": "its values stand in the fingerprint",
    "diffusion.resumable": "carries a state as it is",
    "diffusion.sample_config": "its values stand in the card",
    "diffusion.samplers": "names modules, of which the chosen one is counted",
    "diffusion.section": "its values stand in the fingerprint",
    "diffusion.settings": "its values stand in the fingerprint",
    "diffusion.signals": "stops",
    "diffusion.syntax": "reads code",
    "diffusion.state": "a saved state has a checksum",
    "diffusion.train_config": "its values stand in the fingerprint",
    "diffusion.two_at_once": "where the work is done",
    "diffusion.watching": "tells what a watcher failed at",
}

Code = dict[str, str]
"""Module names and the digests of their trees, 16 hex digits each."""


class CodeSince(Section):
    """By which code a training made its steps from `step` on: the code's digest, and torch's version."""

    step: int
    digest: str
    torch: str


def code_of(*roots: str) -> Code:
    """The modules that `roots` compute by, themselves included, but for the neutral ones."""
    found: Code = {}
    todo = list(roots)
    while todo:
        name = todo.pop()
        if name not in found and not is_neutral(name):
            tree = module_tree(name)
            found[name] = _digest(normalised(tree))
            todo.extend(modules_of(tree))
    return dict(sorted(found.items()))


def code_digest(code: Code) -> str:
    """16 hex digits for the whole of it."""
    return _digest("\n".join(f"{name} {digest}" for name, digest in sorted(code.items())))


def code_since(step: int, code: Code) -> CodeSince:
    """This code with the installed torch, from `step` on."""
    return CodeSince(step=step, digest=code_digest(code), torch=torch_version())


def torch_version() -> str:
    """The installed torch's version, such as 2.13.0, without its build, which stands for a kind of device."""
    return version("torch").partition("+")[0]


def changed_modules(old: Code, new: Code) -> list[str]:
    """The files, such as data/loader.py, of modules that differ, came or went, in order."""
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [f"{name.removeprefix(f'{PACKAGE}.').replace('.', '/')}.py" for name in names]


def is_neutral(name: str) -> bool:
    """Whether a module, or a package that it lies in, is listed as neutral."""
    parts = name.split(".")
    return any(".".join(parts[:length]) in NEUTRAL for length in range(1, len(parts) + 1))


def module_file(name: str) -> Path | None:
    """The file of a module of this project, None when the name is no module of it."""
    base = ROOT.joinpath(*name.split("."))
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.exists()), None)


@cache
def module_tree(name: str) -> ast.Module:
    """A module's syntax tree."""
    file = module_file(name)
    if file is None:
        raise ValueError(f"there is no module {name}")
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def modules_of(tree: ast.AST) -> set[str]:
    """The modules of this package that a tree imports; a package's own only where it holds code."""
    found = set()
    for name in imported(tree):
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            module = ".".join(parts[:length])
            file = module_file(module) if parts[0] == PACKAGE else None
            if file and (file.name != "__init__.py" or has_code(module)):
                found.add(module)
    return found


def has_code(name: str) -> bool:
    """Whether a module holds more than its docstring."""
    return len(module_tree(name).body) > 1


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
