"""A measurement of `diffctl check --measure` in the user's cache."""

import json
from pathlib import Path

from diffusion.check.time_estimate import Measurement
from diffusion.check.timing import ImageTime, TimeRange
from diffusion.system.checksums import add_checksum, read_checksummed_json
from tests.fuzz.repairs import correct_checksum


def seeds() -> list[bytes]:
    """Return a valid measurement."""
    timed = ImageTime(images=8, image=TimeRange.of([0.1, 0.2, 0.4]))
    kept = Measurement(
        machine="a processor, 2 threads",
        batch=64,
        step=timed,
        sampling={"ddim": timed, "ddim noisy": timed},
        extractors={"effnet-lite0-64": timed},
        missing={"inception-v3-compat": "its weights are not here"},
    )
    return [json.dumps(add_checksum(kept.model_dump(mode="json"))).encode()]


def repair(data: bytes) -> bytes:
    """Correct the checksum."""
    return correct_checksum(data)


def parse(path: Path) -> None:
    """Read it."""
    read_checksummed_json(path, Measurement)
