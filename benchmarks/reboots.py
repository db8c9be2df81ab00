"""A reboot in the midst of a scheduled run, again and again: `python -m benchmarks.reboots`, over an hour.

All are killed at once as the run trains, samples, evaluates or registers: at moments drawn from `--seed`.

| what | promise |
| --- | --- |
| 20 reboots | the next run completes: it goes on with the training, and samples nothing twice |
"""

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.helpers.reboot import drawn, reboot

LONG = True  # not among what `python -m benchmarks` runs


def main() -> None:
    """Print how each of them went."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--first", type=int, default=1, help="the reboot to begin with")
    parser.add_argument("--seed", type=int, default=0)
    options, failed = parser.parse_args(), 0
    for number in range(options.first, options.first + options.times):
        began, moment = time.monotonic(), drawn(options.seed, number)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                reboot(Path(folder), moment)
                said = "the next run completed"
            except Exception:
                failed += 1
                said = traceback.format_exc()
        print(f"{number:3} {time.monotonic() - began:6.0f} s  at {moment}: {said}", flush=True)
    if failed:
        sys.exit(f"{failed} of {options.times} reboots were not got over")


if __name__ == "__main__":
    main()
