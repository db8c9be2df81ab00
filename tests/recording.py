"""Draw the terminal picture in the README: `python -m tests.recording [FOLDER]`.

`diffctl run` runs in the folder, by default in a fresh clone of this checkout. Its output becomes
docs/run.svg.
"""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.conftest import ROOT, command, environment

PICTURE = ROOT / "docs/run.svg"
COLUMNS = 100


def main() -> None:
    """Run the pipeline and draw its output."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print("$ diffctl run")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "diffctl"
        if not folder.exists():
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        env = environment({"PYTHONPATH": str(folder)})
        done = subprocess.run(
            command("run"), cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True
        )
    console.print(Text.from_ansi(done.stdout.decode()))
    console.save_svg(str(PICTURE), title="diffctl run")


if __name__ == "__main__":
    main()
