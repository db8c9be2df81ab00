"""Run the tests marked `gpu`: `python -m tests.gpu [--minutes M] [--file FILE]`, then pytest's arguments.

Passed tests are recorded in FILE, for this code, torch and GPU. The same command runs the rest, with failed
tests last. No test starts after M minutes. Tests that need a missing package are skipped, with its name.
"""

import argparse
import hashlib
import math
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FILE = Path("tests-gpu.json")
FOLDERS = ("diffusion", "cli", "flows", "serving", "tracking", "profiles", "tests")


def code() -> str:
    """Return a digest of all files that tests may read."""
    digest = hashlib.sha256()
    found = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    for path in sorted(path for path in found if path.suffix in (".py", ".yaml")):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def main(arguments: list[str]) -> int:
    """Return 0 if no test failed, or without a GPU; else pytest's exit code."""
    reader = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    reader.add_argument("--minutes", type=float, default=math.inf, help="after which no test starts")
    reader.add_argument("--file", type=Path, default=FILE, help="record of passed tests")
    options, further = reader.parse_known_args(arguments)
    import torch

    if not torch.cuda.is_available():
        print("There is no GPU here, so nothing was tested.")
        return 0
    from tests.gpu.resumable_run import ResumableRun, run

    here = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__, "code": code()}
    return run(
        ResumableRun(options.file, here, options.minutes), ["-m", "gpu", str(ROOT / "tests/gpu"), *further]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
