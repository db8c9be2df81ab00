"""What a training says of itself while it runs, in `run.json` of its folder: for whoever looks."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from diffusion.system.checksums import read_checksummed_json
from diffusion.system.section import Section

HEARTBEAT = "run.json"
_Instant = Annotated[float, Field(ge=0, lt=10**11)]


class Heartbeat(Section):
    """Key, process, step, and the time of the last sign of life in seconds since 1970."""

    key: Annotated[str, Field(min_length=1, max_length=200)]
    pid: PositiveInt
    step: Annotated[NonNegativeInt, Field(le=10**12)]
    heartbeat: _Instant


def read_heartbeat(folder: Path) -> Heartbeat | None:
    """What the training in `folder` said last; None where there is none. DiffctlError where it is damaged."""
    try:
        return read_checksummed_json(folder / HEARTBEAT, Heartbeat)
    except FileNotFoundError:
        return None
