"""params.yaml, up to the settings of the stages, without a network."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from diffusion.config import load
from diffusion.protocol.grid import cell_settings, grid, settings_card
from diffusion.system.section import fingerprint
from tests.conftest import ROOT, params
from tests.helpers.broken_params import CLASSIFIER, RAW

NAME = "params.yaml"
EXPECTED = ("import: PIL",)  # by an entry with its section in the reader's module


REQUIRED = {  # fields without defaults
    "data": {"name": "digits"},
    "model": {"channels": 8, "channel_mult": [1]},
    "process": {},
    "train": {"steps": 1, "batch_size": 1, "lr": 1, "p_uncond": 0.1},
    "sample": {"num_images": 2},
    "sweep": {"steps": [2], "eta": [0]},
    "evaluate": {},
}


def seeds() -> list[bytes]:
    """Return a profile without comments, and each complete section with minimal other ones as JSON, which is
    YAML too.

    They are small, since YAML is parsed at about a kilobyte per millisecond.
    """
    profile = (ROOT / "profiles/digits.yaml").read_text(encoding="utf-8")
    lines = [line.partition("#")[0].rstrip() for line in profile.splitlines()]
    axes = {"noise": ["small", "large"], "spacing": ["uniform", "trailing"], "guidance": [0, 1.5]}
    axes["guidance_interval"] = [None, [0.2, 5]]
    also = ["effnet-lite0-96", {"extractor": "inception-v3-compat", "weights": "x.pth"}]
    whole = {**params(sweep=axes, evaluate={"extra_extractors": also}), "classifier": CLASSIFIER}
    made = [json.dumps({**REQUIRED, name: section}) for name, section in whole.items()]
    return [text.encode() for text in ("\n".join(filter(None, lines)), *made)]


def parse(path: Path) -> None:
    """Load it, and make its cells' cards."""
    config = load(path)
    fingerprint(config)
    for cell in grid(config.sample, config.sweep):
        settings_card(cell_settings(config.sample, cell))


def mutate_lines(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes | None:
    """Duplicate, drop, move or indent a line, or replace its value with other YAML."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    line = lines[at]
    how = rng.randrange(5)
    if how == 0:
        lines.insert(rng.randrange(len(lines)), line)
    elif how == 1:
        del lines[at]
    elif how == 2:
        lines[at] = rng.choice((b" ", b"\t", b"- ", b"? ", b"  ")) + line
    elif how == 3:
        lines[at] = line.lstrip()
    else:
        lines[at] = line.partition(b":")[0] + b": " + rng.choice(RAW).encode()
    return b"\n".join(lines)


MUTATORS = (mutate_lines,)
