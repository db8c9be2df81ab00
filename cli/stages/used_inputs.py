"""The inputs of a stage as it used them, compared with what DVC will record.

DVC reads the dependencies and params of a stage when its command ends. After an edit, or one that was undone,
it would record inputs that the result was not made from.
"""

import ast
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion.code_digest import is_neutral, normalized_syntax
from diffusion.layout import dvc_stages
from diffusion.system.errors import TEMPORARY, LastingError
from diffusion.system.fields import changed_fields
from diffusion.system.loaded_code import PACKAGES, loader_of
from diffusion.system.params import READ, parse_yaml, read_params
from diffusion.system.registry import PLUGINS


class InputsChanged(LastingError):
    """Inputs changed while a stage ran. It is not retried, since a retry would do other work."""

    exit_code = TEMPORARY


@contextmanager
def unchanged_inputs(stage: str) -> Iterator[None]:
    """Raise InputsChanged after the block if a stage of dvc.yaml used other inputs than there are then.

    Settings count as they were read, and code as it was compiled if it may change results, comments excepted.
    """
    READ.clear()
    inputs = {} if os.environ.get("RANK", "0") != "0" else dvc_stages().get(stage, {})
    names = {name.partition(".")[0] for name in inputs.get("params", []) if isinstance(name, str)}
    deps = [Path(dep) for dep in inputs.get("deps", [])]
    files = _file_states(deps)
    yield
    changed = [*_changed_sections(names), *_changed_code(deps)]
    changed += sorted({str(file) for file, _ in files.items() ^ _file_states(deps).items()})
    if changed:
        raise InputsChanged(
            f"inputs changed while the stage {stage} ran ({', '.join(changed[:3])}): undo that to finish "
            "from the work in runs/, or run the same command again for the new ones"
        )


def _changed_sections(names: set[str]) -> list[str]:
    """Return the fields of these sections that were read with another value than params.yaml has now."""
    texts = [parse_yaml(text) for text in READ] if names else []
    now = read_params() if texts else {}
    pairs = [[{name: values.get(name) for name in names} for values in (text, now)] for text in texts]
    return list(dict.fromkeys(field for used, new in pairs for field in changed_fields(used, new)))


def _changed_code(deps: list[Path]) -> list[str]:
    """Return the files below `deps`, and the one of plugins' entries, that lack code which was loaded."""
    changed, folders = [], [dep.resolve() for dep in deps]
    for name in sorted(sys.modules):
        if (loader := loader_of(name)) is None:
            continue
        file, package = Path(loader.path).resolve(), name.partition(".")[0]
        if (name == PLUGINS and deps) or any(file.is_relative_to(folder) for folder in folders):
            parts = _entries if name == PLUGINS or is_neutral(name) else _code
            try:
                now = file.read_bytes()
                is_used = now == loader.source or parts(loader.source) <= parts(now)
            except (OSError, SyntaxError, ValueError):  # removed, or no code
                is_used = False
            if not is_used:
                changed.append(f"{package}/{str(file).rpartition(f'/{package}/')[2]}")
    return changed


def _code(source: bytes) -> set[str]:
    return {normalized_syntax(ast.parse(source))}


def _entries(source: bytes) -> set[str]:
    """Return the entries that a module defines or adds to registries: all that counts of a neutral one."""
    found: list[Any] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name("Registry"), args=[_, _, ast.Dict(keys, values)]):
                found.extend([key, value] for key, value in zip(keys, values, strict=True))
            case ast.Assign(targets=[ast.Subscript(value=ast.Name(name))]) if name.isupper():
                found.append(node)
    return set(map(normalized_syntax, found))


def _file_states(deps: list[Path]) -> dict[Path, tuple[int, ...]]:
    """Return size, inode and times of the data files of dependencies.

    A file that is linked twice has none for the inode: DVC links its cache in other folders meanwhile.
    """
    data = (dep for dep in deps if str(dep).partition("/")[0] not in PACKAGES)
    files = (file for dep in data for file in ([dep] if dep.is_file() else dep.rglob("[!.]*")))
    states = {file: file.stat() for file in files if file.is_file()}
    return {
        file: (one.st_size, one.st_ino, one.st_mtime_ns, one.st_ctime_ns * (one.st_nlink == 1))
        for file, one in states.items()
    }
