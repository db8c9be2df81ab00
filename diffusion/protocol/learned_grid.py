"""The file of learned times, and settings with those of their number of steps. This module loads no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from diffusion.protocol.samplers import LearnedOptions
from diffusion.protocol.spacing import LEARNED
from diffusion.system.errors import UsageError
from diffusion.system.section import Section, Steps, explain

IN_CODE_DIGEST = False  # diffusion/code_digest.py

MAKE = "`diffctl grid --steps 4,6,8,10` makes one"
MAX_BYTES = 1 << 20  # of a file; ten grids have 2 KB


class LearnedGrids(Section):
    """Learned times of a model: by number of steps, the noise level σ/α of each step, falling."""

    format: int = 1
    model_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    learned: dict[str, Any]
    levels: dict[Steps, tuple[float, ...]]

    @model_validator(mode="after")
    def _lengths_fit(self) -> "LearnedGrids":
        for steps, levels in self.levels.items():
            LearnedOptions(levels=levels)
            if len(levels) != steps:
                raise ValueError(f"levels of {steps} steps are {len(levels)} numbers")
        return self

    def options(self, steps: int, origin: str) -> dict[str, Any]:
        """Return the options of spacing learned for S steps; UsageError lists the numbers that there are."""
        if steps not in self.levels:
            found = ", ".join(map(str, sorted(self.levels)))
            raise UsageError(
                f"{origin} has times for {found} steps, not {steps}: {MAKE} with further numbers"
            )
        return {"levels": self.levels[steps], "model_sha256": self.model_sha256}


def read_learned_grids(path: Path) -> LearnedGrids:
    """Read a file of `diffctl grid`; UsageError if it is missing or another file."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} is no file of learned times: {MAKE}")
        return LearnedGrids.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UsageError(f"{explain(error, str(path), LearnedGrids)}: {MAKE}") from None
    except (OSError, ValueError):  # ValueError for a path with NUL
        raise UsageError(f"there is no file of learned times {path}: {MAKE}") from None


def refuse_learned_times(options: Mapping[str, Any], command: str) -> None:
    """Raise UsageError for learned times of a model, since the command trains other models."""
    if options.get("model_sha256"):
        raise UsageError(
            f"{command} trains other models than the one of the learned times: use another spacing"
        )


def with_learned_levels(values: Mapping[str, Any], steps: int = 0) -> dict[str, Any]:
    """Return the values of settings of images, where the levels of their steps replace a file of them.

    `steps` is the number of steps without one in the values.
    """
    options = values.get("spacing_options")
    file = options.get("file") if isinstance(options, dict) else None
    if values.get("spacing") != LEARNED or not file or not isinstance(file, str):
        return dict(values)
    grids = read_learned_grids(Path(file))
    return {**values, "spacing_options": grids.options(values.get("steps", steps), file)}
