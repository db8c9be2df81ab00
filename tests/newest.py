"""Test with the newest packages that pyproject.toml allows: `make test-newest PYTHON=python3.14`.

`.venv-newest` ignores constraints.txt and contains PyPI's torch, the CUDA build on Linux (12 GB). The fast
tests run in it, and the demo runs in a copy of this checkout. The demo may print only lines in EXPECTED. So a
new warning of a library, also at exit, is detected here before users see it.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
VENV = ROOT / ".venv-newest"

EXPECTED = (
    r"==> starting; Ctrl-C saves the training, and the same command resumes it",
    r"==> (data|reference|train|sample|evaluate|report)",
    r"(data|reference|train|evaluate|steps\d+-eta[\d.]+) [\d,]+/[\d,]+( · [^·]+)*",
    r"data/prepared: [\d,]+ train, [\d,]+ test images of 8×8×1, 10 classes",
    r"diffctl: the machine is busy: .*",
    r"train: [\d,]+ steps, state in runs/train/[0-9a-f]{16}",
    r"model: models/model\.safetensors",
    r"report: report/index\.html",
    r"STEPS +ETA +fd_\S+ +excess +kd_\S+ *",
    r"\d+ +[\d.]+( +-?[\d.]+(e-?\d+)?){3} *\*?",
    r"\d+ images a cell against [\d,]+ of digits \(train\), extractor \S+; \* the best by \S+",
    r"its \S+ is roughly [\d.]+(e-?\d+)? too low, as the least of \d+",
    r"\S+ prefers steps\S+ to steps\S+(, within chance)?",
    r"model:  diffctl-digits version \d+: .*",
    r"runs:   `diffctl ui` .*",
    r"",
)


def main() -> None:
    """Set up the environment, run the tests and the demo; CalledProcessError or SystemExit if one fails."""
    print("Setting up .venv-newest with the newest packages ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip = [VENV / "bin/python", "-m", "pip", "install", "--quiet", "--upgrade"]
    subprocess.run([*pip, "pip"], check=True)  # pip 23, of Python 3.11, resolves these packages in hours
    subprocess.run([*pip, "--upgrade-strategy", "eager", "--editable", ".[dev]"], cwd=ROOT, check=True)
    tests = [VENV / "bin/python", "-m", "pytest", "-n", "2", "-m", "not slow and not long"]
    subprocess.run(tests, cwd=ROOT, env=environment(), check=True)
    with tempfile.TemporaryDirectory(prefix="diffctl-newest-") as folder:
        copy_checkout(Path(folder))
        unexpected = [
            line for line in demo(Path(folder)) if not any(re.fullmatch(known, line) for known in EXPECTED)
        ]
    if unexpected:
        shown = "\n  ".join(unexpected[:20])
        raise SystemExit(f"the demo printed {len(unexpected)} unexpected lines:\n  {shown}")
    print("the demo ran and printed only expected lines")


def environment() -> dict[str, str]:
    """Return this process's environment with `.venv-newest` activated."""
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return {**kept, "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def copy_files(folder: Path, *sources: str) -> None:
    """Copy the files that Git does not ignore, by default all."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *sources]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if os.path.lexists(ROOT / name):  # a deleted file stays listed until its deletion is committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)


def copy_checkout(folder: Path) -> None:
    """Copy this checkout as the only commit of a repository."""
    copy_files(folder)
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "begin"]):
        subprocess.run(["git", *author, *command], cwd=folder, check=True)


def demo(folder: Path) -> Iterator[str]:
    """Yield the lines that `make demo` prints to stdout and stderr; SystemExit if it fails."""
    own = {"PYTHONPATH": str(folder), "MLFLOW_TRACKING_URI": "", "PREFECT_API_URL": ""}
    command, env = [VENV / "bin/diffctl", "run"], {**environment(), **own}
    with subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            yield line.rstrip("\n")
    if running.returncode:
        raise SystemExit(f"the demo ended with exit code {running.returncode}")


if __name__ == "__main__":
    main()
