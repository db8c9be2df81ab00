"""Checks before and after a stage, its folder of resumable work, and the run that it belongs to."""

import ast
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

from diffusion.code_digest import PACKAGE, is_neutral, normalized_syntax
from diffusion.config import Config, load
from diffusion.layout import RUNS, dvc_stages, home
from diffusion.system.errors import TEMPORARY, LastingError
from diffusion.system.fields import changed_fields
from diffusion.system.params import read_params
from diffusion.system.registry import PLUGINS
from flows.run_lock import join_run


class InputsChanged(LastingError):
    """Settings or code changed while a stage ran. It is not retried, since a retry would do other work."""

    exit_code = TEMPORARY


@contextmanager
def enter_stage(stage: str) -> Iterator[None]:
    """Check params.yaml, share resumable work, and keep other runs out of this folder during the block."""
    with unchanged_inputs(stage):
        load()  # no stage begins if a later one would refuse its section
        share_runs()
        with join_run():
            yield


@contextmanager
def unchanged_inputs(stage: str) -> Iterator[None]:
    """Raise InputsChanged after the block if the settings or the code of a stage of dvc.yaml have changed.

    DVC reads both again at the end, and would record the new ones as the inputs of the result. Code counts if
    it is loaded and may change results, as in a fingerprint, comments excepted.
    """
    inputs = {} if os.environ.get("RANK", "0") != "0" else dvc_stages().get(stage, {})
    names = {name.partition(".")[0] for name in inputs.get("params", []) if isinstance(name, str)}
    packages = tuple(f"{package}/" for package in (PACKAGE, PLUGINS))
    deps = [Path(dep).resolve() for dep in inputs.get("deps", []) if dep.startswith(packages)]
    files = (file for dep in deps for file in ([dep] if dep.is_file() else dep.rglob("*.py")))
    sections, code = _sections(names), {file: file.read_text() for file in files}
    yield
    changed = changed_fields(sections, _sections(names))
    loaded = [one for one in sys.modules.items() if one[0].startswith((f"{PACKAGE}.", f"{PLUGINS}."))]
    for name, module in loaded:
        file = Path(module.__file__ or "").resolve()
        if file in code and _differs(code[file], file) and not is_neutral(name):
            changed.append(f"{name.replace('.', '/')}.py")
    if changed:
        raise InputsChanged(
            f"settings or code changed while the stage {stage} ran ({', '.join(changed[:3])}): undo that to "
            "finish from the work in runs/, or run the same command again for the new ones"
        )


def _sections(names: set[str]) -> dict[str, object]:
    """Return sections of params.yaml."""
    values = read_params() if names else {}
    return {name: values.get(name) for name in names}


def _differs(before: str, file: Path) -> bool:
    """Return whether the code of the file is other than before; a syntax error counts as a change."""
    try:
        after = file.read_text()
        return after != before and normalized_syntax(ast.parse(after)) != normalized_syntax(ast.parse(before))
    except (OSError, SyntaxError):
        return True


def share_runs() -> None:
    """Link runs/ to the main checkout in a temporary folder of `dvc exp run`: the work is shared."""
    here = Path.cwd()
    main = home(here)
    if main == here:
        return
    (main / RUNS).mkdir(exist_ok=True)
    with suppress(FileExistsError):  # another stage made it
        RUNS.symlink_to(main / RUNS, target_is_directory=True)


def preflight(stage: str) -> Config:
    """Check a stage's inputs, and return the configuration, which only observers use."""
    from diffusion.check import preflight as iter_preflight  # it needs torch, which some stages do not

    config = load()
    for finding in iter_preflight(config, stage):
        remedy = f" ({finding.remedy})" if finding.remedy else ""
        typer.echo(f"{finding.subject}: {finding.message}{remedy}", err=True)
    return config
