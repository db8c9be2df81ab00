"""The inputs of a stage as it used them, compared with what DVC will record.

DVC reads the dependencies and params of a stage when its command ends. After an edit, or one that was undone,
it would record inputs that the result was not made from.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion.code_digest import ModuleDigests, parse_module, syntax_digest
from diffusion.layout import CODE, dvc_stages
from diffusion.system.errors import TEMPORARY, LastingError
from diffusion.system.loaded_code import loader_of
from diffusion.system.params import READ, changed_fields, parse_yaml, read_params
from flows.stage_code import read_stage_code, recorded_digest


class InputsChanged(LastingError):
    """Inputs changed while a stage ran. It is not retried, since a retry would do other work."""

    exit_code = TEMPORARY


@contextmanager
def unchanged_inputs(stage: str) -> Iterator[None]:
    """Raise InputsChanged after the block if a stage of dvc.yaml used other inputs than DVC will record.

    Settings count as they were read, and code as it was compiled. An edit of code that was loaded before it
    is no change, since code.yaml keeps the digest of the code that was loaded.
    """
    READ.clear()
    inputs = {} if os.environ.get("RANK", "0") != "0" else dvc_stages().get(stage, {})
    names = {name.partition(".")[0] for name in inputs.get("params", []) if isinstance(name, str)}
    deps = [Path(dep) for dep in inputs.get("deps", [])]
    files, code = _file_states(deps), _code_of(stage) if inputs else {}
    recorded = recorded_digest(stage)
    yield
    changed = [*_changed_sections(names), *_changed_code(code)]
    changed += sorted({str(file) for file, _ in files.items() ^ _file_states(deps).items()})
    changed += [str(CODE)] * (recorded_digest(stage) != recorded)
    if changed:
        raise InputsChanged(
            f"inputs changed while the stage {stage} ran ({', '.join(changed[:3])}): undo that to finish "
            "from the work in runs/, or run the same command again for the new ones"
        )


def _code_of(stage: str) -> ModuleDigests:
    """Return the digests of a stage's modules; InputsChanged if DVC has a digest of other code for it."""
    with read_stage_code() as code:
        recorded = recorded_digest(stage) if "DVC_STAGE" in os.environ else None
        if recorded not in (None, code.digest(stage)):
            raise InputsChanged(f"the code has changed since {CODE} was written: run `dvc repro` again")
        return code.modules(stage)


def _changed_sections(names: set[str]) -> list[str]:
    """Return the fields of these sections that were read with another value than params.yaml has now."""
    texts = [parse_yaml(text) for text in READ] if names else []
    now = read_params() if texts else {}
    pairs = [[{name: values.get(name) for name in names} for values in (text, now)] for text in texts]
    return list(dict.fromkeys(field for used, new in pairs for field in changed_fields(used, new)))


def _changed_code(code: ModuleDigests) -> list[str]:
    """Return the files of modules that were loaded with other code than at the start of the stage."""
    changed = []
    for name, digest in code.items():
        loader = loader_of(name)
        if loader and syntax_digest(parse_module(name, Path(loader.path), loader.source)) != digest:
            changed.append(f"{name.replace('.', '/')}.py")
    return changed


def _file_states(deps: list[Path]) -> dict[Path, tuple[int, ...]]:
    """Return size, inode and times of the data files of dependencies.

    A file that is linked twice has none for the inode: DVC links its cache in other folders meanwhile.
    """
    files = (file for dep in deps for file in ([dep] if dep.is_file() else dep.rglob("[!.]*")))
    states = {file: file.stat() for file in files if file.is_file()}
    return {
        file: (one.st_size, one.st_ino, one.st_mtime_ns, one.st_ctime_ns * (one.st_nlink == 1))
        for file, one in states.items()
    }
