"""A reboot in the midst of a scheduled run, again and again: `python -m benchmarks.reboots`, over an hour.

| what | promise |
| --- | --- |
| all killed at once while a run trains, 20 times | the next run goes on with the training and completes |
"""

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.helpers.reboot import reboot_in_training

LONG = True  # not among what `python -m benchmarks` runs


def main() -> None:
    """Print how each of them went."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=20)
    times, failed = parser.parse_args().times, 0
    for number in range(1, times + 1):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                reboot_in_training(Path(folder))
                said = "the next run completed"
            except Exception:
                failed += 1
                said = traceback.format_exc()
        print(f"{number:3} {time.monotonic() - began:6.0f} s  {said}", flush=True)
    if failed:
        sys.exit(f"{failed} of {times} reboots were not got over")


if __name__ == "__main__":
    main()
