"""The code that decides numbers, by digest: what other code has made is not taken for this code's work.

A digest is of a module's syntax tree as diffusion/system/syntax.py writes it. Imports within this package are
followed, also those inside functions; what is named only by a registry's text is not, so that an entry that
was not chosen decides nothing. Modules in NEUTRAL change no number and are neither read nor followed.
"""

import ast
import hashlib
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from diffusion.system.section import Section
from diffusion.system.syntax import imported_modules, normalized_syntax

ROOT = Path(__file__).parent.parent
PACKAGE = Path(__file__).parent.name

# Modules that decide no number, or only by values that stand in a fingerprint by themselves.
NEUTRAL = {
    "diffusion.code_digest": "this",
    "diffusion.config": "its values stand in the fingerprint",
    "diffusion.data.data_config": "its values stand in the fingerprint",
    "diffusion.data.source_registry": "names modules, of which the chosen one is counted",
    "diffusion.data.problems": "lists what was left out",
    "diffusion.data.sources.kaggle": "what comes is listed with the data",
    "diffusion.downloads.cache": "names a folder",
    "diffusion.downloads.fetch": "what comes is checked by its SHA-256",
    "diffusion.evaluate.evaluate_config": "its values stand in what is found by them",
    "diffusion.evaluate.features.extractor_weights": "what it reads is checked by its SHA-256",
    "diffusion.images.store_meta": "names what a store says of itself",
    "diffusion.images.verified": "looks whether images changed",
    "diffusion.layout": "names places",
    "diffusion.model.model_config": "its values stand in the fingerprint",
    "diffusion.model.weights_header": "refuses weights of another network",
    "diffusion.model.model_file": "writes and reads what others computed; a model's tensors have a digest",
    "diffusion.model.presets": "its values stand in the fingerprint",
    "diffusion.model.network_registry": "names modules, of which the chosen one is counted",
    "diffusion.process.process_config": "its values stand in the fingerprint",
    "diffusion.process.process_registry": "names modules, of which the chosen one is counted",
    "diffusion.protocol.extractors": "names modules, of which the chosen one is counted",
    "diffusion.protocol.samplers": "names modules, of which the chosen one is counted",
    "diffusion.protocol.settings": "its values stand in the fingerprint",
    "diffusion.protocol.sample_sections": "its values stand in the card",
    "diffusion.sample.nan_guard": "refuses numbers that are none",
    "diffusion.system.malloc": "keeps freed memory",
    "diffusion.system.npy_files": "reads what others computed",
    "diffusion.system.registry_section": "its values stand in the fingerprint",
    "diffusion.system.devices": "holds a device",
    "diffusion.system.json_files": "reads what others wrote",
    "diffusion.system.errors": "names what went wrong",
    "diffusion.system.files": "writes whole files",
    "diffusion.system.limits": "bounds what may be asked for",
    "diffusion.system.locks": "waits",
    "diffusion.system.machine_memory": "measures the machine",
    "diffusion.system.params": "its values stand in the fingerprint",
    "diffusion.system.regular_files": "refuses what is no plain file",
    "diffusion.system.renamed": "reads what earlier versions wrote",
    "diffusion.system.references": "loads the module that is named",
    "diffusion.system.checksums": "tells what changed after it was written",
    "diffusion.system.section": "its values stand in the fingerprint",
    "diffusion.system.signals": "stops",
    "diffusion.system.syntax": "reads code",
    "diffusion.system.threads": "where the work is done, and joined in its order",
    "diffusion.system.device_transfer": "moves what others computed",
    "diffusion.train.checkpoint.state_files": "writes and reads states",
    "diffusion.train.checkpoint.tensor_stream": "writes and reads the tensors of states",
    "diffusion.train.distributed.rank_zero": "waits",
    "diffusion.train.observers": "observes a training",
    "diffusion.train.plan": "its values are in the fingerprint",
    "diffusion.train.step_memory": "chooses a micro-batch, which counts as rounding",
    "diffusion.train.step_metrics": "means for the log",
    "diffusion.train.train_config": "its values are in the fingerprint",
    "diffusion.train.validation_loss": "observes a training",
}

ModuleDigests = dict[str, str]
"""Module names and the digests of their trees, 16 hex digits each."""


class CodeSince(Section):
    """By which code a training made its steps from `step` on: the code's digest, and torch's version."""

    step: int
    digest: str
    torch: str


@cache
def module_digests(*roots: str) -> ModuleDigests:
    """The modules that `roots` compute by, themselves included, but for the neutral ones.

    The roots are imported first, so that what runs later is what was read, whatever is edited meanwhile. Read
    once a process: a sweep asks for every cell, and nobody changes what is returned.
    """
    found: ModuleDigests = {}
    todo = list(roots)
    for root in roots:
        import_module(root)
    while todo:
        name = todo.pop()
        if name not in found and not is_neutral(name):
            tree = module_tree(name)
            found[name] = _digest(normalized_syntax(tree))
            todo.extend(modules_of(tree))
    return dict(sorted(found.items()))


def code_digest(code: ModuleDigests) -> str:
    """16 hex digits for the whole of it."""
    return _digest("\n".join(f"{name} {digest}" for name, digest in sorted(code.items())))


def code_since(step: int, code: ModuleDigests) -> CodeSince:
    """This code with the installed torch, from `step` on."""
    return CodeSince(step=step, digest=code_digest(code), torch=torch_version())


def torch_version() -> str:
    """The installed torch's version, such as 2.13.0, without its build, which stands for a kind of device."""
    return version("torch").partition("+")[0]


@cache
def library_version() -> str:
    """The torch version and a digest of diffusion/: equal where equal images come from equal settings."""
    root = ROOT / PACKAGE
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return f"{digest.hexdigest()[:12]} with torch {torch_version()}"


def changed_modules(old: ModuleDigests, new: ModuleDigests) -> list[str]:
    """The files, such as train/loader.py, of modules that differ, came or went, in order."""
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
    for name in imported_modules(tree):
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
