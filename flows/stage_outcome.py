"""How a stage failed, in a small file that the stage writes and who supervises it reads.

The file's place is told by an environment variable, to the stage alone. Who is killed writes none.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from diffusion.system.errors import DiffctlError, Interrupted, TemporaryError, UsageError
from diffusion.system.files import write_json

VARIABLE = "DIFFCTL_OUTCOME"

Kind = Literal["interrupted", "refused", "temporary", "failed", "crashed"]
_KINDS: dict[type[BaseException], Kind] = {
    Interrupted: "interrupted",
    UsageError: "refused",
    TemporaryError: "temporary",
}


@dataclass(frozen=True)
class StageOutcome:
    """The kind of a failure, its sentence for a person, and the exit code of the stage."""

    kind: Kind
    sentence: str
    exit_code: int

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all; nothing where nobody waits for it any more."""
        with contextlib.suppress(OSError):
            if path.parent.is_dir():
                write_json(path, asdict(self))


def kind_of(error: BaseException) -> Kind:
    """The kind of a failure that has a sentence of its own."""
    return next((kind for known, kind in _KINDS.items() if isinstance(error, known)), "failed")


@contextmanager
def outcome_file() -> Iterator[Path]:
    """Where a stage may write its outcome, in a folder of this user's alone that goes with the block."""
    with tempfile.TemporaryDirectory(prefix="diffctl-outcome-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "outcome.json"


def read_outcome(path: Path) -> StageOutcome | None:
    """What the stage wrote; None where it wrote nothing, or nothing that is an outcome."""
    from diffusion.system.json_files import read_json  # not where `diffctl --help` would load it

    try:
        outcome = read_json(path, StageOutcome)
    except (FileNotFoundError, DiffctlError):
        return None
    return outcome if 0 <= outcome.exit_code <= 255 else None
