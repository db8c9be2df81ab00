"""The outcome of a failed stage: a small file from the stage to its supervisor.

An environment variable gives its path to the stage alone. A killed stage writes none.
"""

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path

from diffusion.system.errors import DiffctlError, Kind
from diffusion.system.files import write_json

VARIABLE = "DIFFCTL_OUTCOME"


@dataclass(frozen=True)
class StageOutcome:
    """The kind of a failure, its message, and the exit code of the stage."""

    kind: Kind
    sentence: str
    exit_code: int

    def write(self, path: Path) -> None:
        """Write the file atomically; skip it if the supervisor is gone."""
        with contextlib.suppress(OSError):
            if path.parent.is_dir():
                write_json(path, asdict(self))


def read_outcome(path: Path) -> StageOutcome | None:
    """Return the outcome that the stage wrote; None if it is missing or invalid."""
    from diffusion.system.checksums import read_json  # lazy: `diffctl --help` imports this module

    try:
        outcome = read_json(path, StageOutcome)
    except (FileNotFoundError, DiffctlError):
        return None
    return outcome if 0 <= outcome.exit_code <= 255 else None
