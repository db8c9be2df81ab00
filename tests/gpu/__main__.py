"""Run what is marked `gpu`: `python -m tests.gpu [--minutes M] [--file FILE]`, then pytest's arguments.

What has passed is kept in FILE, for this code, torch and GPU: the same command goes on with the rest, and
comes to what has failed last. After M minutes no further test begins. What needs a package that is missing is
skipped, with its name.
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
    """A digest of all that tests may see."""
    digest = hashlib.sha256()
    found = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    for path in sorted(path for path in found if path.suffix in (".py", ".yaml")):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def main(arguments: list[str]) -> int:
    """0 where nothing failed, though some may be left; else pytest's exit code. 0 without a GPU, too."""
    reader = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    reader.add_argument("--minutes", type=float, default=math.inf, help="after which no further test begins")
    reader.add_argument("--file", type=Path, default=FILE, help="where it is kept what has passed")
    asked, further = reader.parse_known_args(arguments)
    import torch

    if not torch.cuda.is_available():
        print("There is no GPU here, so nothing was tested.")
        return 0
    from tests.gpu.going import Going, run

    here = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__, "code": code()}
    return run(Going(asked.file, here, asked.minutes), ["-m", "gpu", str(ROOT / "tests/gpu"), *further])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
