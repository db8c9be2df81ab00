"""What an upgrade changes in a project: each generated file, merged with the user's edits.

The originals in .diffctl/base are the common ancestors of the user's files and of those that the installed
version generates.
"""

import subprocess
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

from cli.project.generated_files import BASE
from diffusion.system.errors import DiffctlError
from diffusion.system.files import read_text

MAX_CONFLICTS = 127  # git merge-file exits with their number up to this, and with 255 on an error
Action = Literal["new", "replaced", "merged", "conflicts", "kept", "removed"]


class FileChange(NamedTuple):
    """What happens to a file, why, and its new text; None for a file that stays or is removed."""

    path: str
    action: Action
    why: str
    text: str | None = None


def plan_upgrade(root: Path, generated: dict[str, str], kept: Collection[str] = ()) -> list[FileChange]:
    """Return the changes to the project in `root`, given the generated files by path; nothing is written.

    Files in `kept` are the user's own: no version of diffctl has written them. DiffctlError for a file that
    is not text in UTF-8.
    """
    originals = (file for file in (root / BASE).rglob("*") if file.is_file())
    bases = {str(file.relative_to(root / BASE)): read_text(file) for file in originals}
    changes = []
    for path in sorted({*generated, *bases}):
        mine = read_text(root / path) if (root / path).is_file() else None
        base, new = bases.get(path), generated.get(path)
        is_own = path in kept and mine != base
        change = _own_change(path, base, new) if is_own else _change(path, mine, base, new)
        if change is not None:
            changes.append(change)
    return changes


def _own_change(path: str, base: str | None, new: str | None) -> FileChange | None:
    """Return that a file of the user stays although diffctl's file of this name has changed; else None."""
    why = f"it is your own: {BASE} has this version's"
    return None if new in (None, base) else FileChange(path, "kept", why)


def _change(path: str, mine: str | None, base: str | None, new: str | None) -> FileChange | None:
    """Return the change of a file with these texts (None: it does not exist); None without a change."""
    if mine is None:
        return FileChange(path, "new", "of this version", new) if base is None and new else None
    if new in (None, mine, base):
        if new is not None or base is None:
            return None
        if mine == base:
            return FileChange(path, "removed", "no longer generated")
        return FileChange(path, "kept", "no longer generated, and you edited it")
    assert new is not None
    if mine == base:
        return FileChange(path, "replaced", "you had not edited it", new)
    if base is None:
        return FileChange(path, "kept", f"there is no original: {BASE} has this version's")
    merged, conflicts = merge_texts(mine, base, new)
    if conflicts:
        return FileChange(path, "conflicts", f"{conflicts} between your edits and this version", merged)
    return FileChange(path, "merged", "your edits stay", merged)


def merge_texts(mine: str, base: str, new: str) -> tuple[str, int]:
    """Merge three texts by `git merge-file`; return the result and the number of marked conflicts."""
    names = {"yours": mine, "original": base, "this version": new}
    with TemporaryDirectory(prefix="diffctl-") as folder:
        for name, text in names.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        labels = [part for name in names for part in ("-L", name)]
        command = ["git", "merge-file", "-p", *labels, *names]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8")
    if not 0 <= done.returncode <= MAX_CONFLICTS:
        raise DiffctlError(f"`git merge-file` failed: {' '.join(done.stderr.split())}")
    return done.stdout, done.returncode
