"""What `diffctl check` takes: `python -m benchmarks.check`, a minute long.

| what | promise |
| --- | --- |
| processor time for digits, imports included | under 2 s |
| the costliest that the sections take: as many blocks, steps and cells as they allow | under 10 s |
| a network that no machine trains | as digits: it is not built |
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from diffusion.model.unet_config import MAX_BLOCKS, MAX_LEVELS
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_STEPS
from diffusion.system.params import read_params

ROOT = Path(__file__).parent.parent
RUNS = 3
SIDE = 2 ** (MAX_LEVELS - 1)

LARGEST: dict[str, dict[str, Any]] = {
    "data": {"image_size": SIDE},
    "model": {
        "channels": 64,
        "head_channels": 64,
        "channel_mult": [1] * MAX_LEVELS,
        "num_res_blocks": MAX_BLOCKS // MAX_LEVELS,
        "attention_resolutions": [SIDE >> level for level in range(MAX_LEVELS)],
    },
    "process": {"timesteps": MAX_STEPS},
    "train": {"steps": MAX_COUNT, "batch_size": MAX_BATCH},
    "sample": {"num_images": MAX_COUNT},
    "sweep": {  # each of its walks is looked at, since an eta is above 1
        "steps": list(range(MAX_STEPS - 199, MAX_STEPS - 99)),
        "eta": [0.0, 1.0000001],
        "spacing": ["uniform", "quadratic", "trailing"],
    },
}
HOPELESS = {
    "model": {"channels": 16_384, "channel_mult": [64, 64], "head_channels": 64, "attention_resolutions": []}
}


def processor_seconds(changes: dict[str, dict[str, Any]]) -> float:
    """Median seconds of user and system time of the command, for digits with these changes."""
    values = read_params(ROOT / "profiles/digits.yaml")
    for section, keys in changes.items():
        values[section] = {**values[section], **keys}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        return statistics.median(_once(folder) for _ in range(RUNS))


def _once(folder: str) -> float:
    before = os.times()
    command = [sys.executable, "-m", "cli.main", "check"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if " errors, " not in done.stdout:
        sys.exit(f"check failed:\n{done.stdout}{done.stderr}")
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def main() -> None:
    """Print a table."""
    for name, changes in (("digits", {}), ("the costliest", LARGEST), ("a hopeless network", HOPELESS)):
        print(f"{name:<20} {processor_seconds(changes):6.2f} s of processor")


if __name__ == "__main__":
    main()
