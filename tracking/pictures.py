"""A logged picture as the two files that MLflow's own `log_image` makes, under names that never change.

MLflow names them at random, so that sending one again would show it twice.
"""

import uuid
from pathlib import Path

from tracking.spool import Event

THUMBNAIL = 256  # pixels: the small picture that MLflow's page shows first
NAMES = uuid.UUID("5ac0cd0e-4a86-4d1a-8f3c-6d7c0a4d6a11")  # any fixed one


def picture_files(event: Event, folder: Path, scratch: Path) -> list[Path]:
    """Write the picture of an image event in full and as a thumbnail into `scratch`; returns both files."""
    from PIL import Image

    key, step, time = event["key"].replace("/", "~"), event["step"], event["time"]
    name = f"{key}+step+{step}+timestamp+{time}+{uuid.uuid5(NAMES, f'{key}/{step}/{time}')}"
    full, small = scratch / f"{name}.png", scratch / f"{name}+compressed.webp"
    with Image.open(folder / event["path"]) as picture:
        picture.save(full)
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        picture.convert("RGB").save(small)
    return [full, small]
