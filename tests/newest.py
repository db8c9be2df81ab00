"""Test with the newest Python on this machine and the newest packages that pyproject.toml allows.

    make test-newest

`.venv-newest` ignores constraints.txt and contains PyPI's torch, the CUDA build on Linux. The fast tests run
in it, and the demo runs in a copy of this checkout. The demo may print only lines in EXPECTED. So a new
warning of a library, also at exit, is detected here before users see it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
VENV = ROOT / ".venv-newest"
REQUIRED_GB = 12  # free disk space for the installation
QUERY = (
    "import ensurepip, json, sys, venv; v = sys.version_info; "
    "print(json.dumps(v[:3] if v.releaselevel == 'final' else None))"
)
OLDEST = (3, 11)
Version = tuple[int, ...]

EXPECTED = (
    r"==> starting; Ctrl-C saves the training, and the same command resumes it",
    r"==> (data|reference|train|sample|evaluate|report)",
    r"(data|reference|train|evaluate|steps\d+-eta[\d.]+) [\d,]+/[\d,]+( · [^·]+)*",
    r"data/prepared: [\d,]+ train, [\d,]+ test images of 8×8×1, 10 classes",
    r"train: [\d,]+ steps, state in runs/train/[0-9a-f]{16}",
    r"model: models/model\.safetensors",
    r"report: report/index\.html",
    r"STEPS +ETA +fd_\S+ +excess +kd_\S+ *",
    r"\d+ +[\d.]+( +-?[\d.]+(e-?\d+)?){3} *\*?",
    r"\d+ images a cell against [\d,]+ of digits \(train\), extractor \S+; \* the best by \S+",
    r"its \S+ is roughly [\d.]+(e-?\d+)? too low, as the least of \d+",
    r"\S+ prefers steps\S+ to steps\S+(, within chance)?",
    r"model:  diffctl-digits version \d+: .*",
    r"runs:   `make ui` .*",
    r"",
)


def main() -> None:
    """Set up the environment, run the tests and the demo; SystemExit with the reason if one fails."""
    python, version = newest_python(search_path())
    release = ".".join(map(str, version))
    print(f"Setting up .venv-newest with Python {release} and the newest packages ...", flush=True)
    set_up(python, version)
    tests = [str(VENV / "bin/python"), "-m", "pytest", "-n", "2", "-m", "not slow and not long"]
    if subprocess.run(tests, cwd=ROOT, env=environment()).returncode:
        raise SystemExit(f"the fast tests fail with Python {release} and the newest packages")
    with tempfile.TemporaryDirectory(prefix="diffctl-newest-") as folder:
        copy_checkout(Path(folder))
        unexpected = [line for line in demo(Path(folder)) if not is_expected(line)]
    if unexpected:
        shown = "\n  ".join(unexpected[:20])
        raise SystemExit(f"the demo printed {len(unexpected)} unexpected lines:\n  {shown}")
    print("the demo ran and printed only expected lines")


def search_path() -> list[Path]:
    """Return the folders that may contain Pythons: those on PATH and those of pyenv."""
    pyenv = sorted(Path.home().glob(".pyenv/versions/*/bin"))
    return [*map(Path, os.environ.get("PATH", os.defpath).split(os.pathsep)), *pyenv]


def newest_python(folders: Sequence[Path]) -> tuple[Path, Version]:
    """Return the newest released Python in the folders that can create environments, and its version."""
    names = {path for folder in folders for path in folder.glob("python3.*") if path.suffix[1:].isdigit()}
    found = [(version, path) for path in sorted(names) if (version := version_of(path)) and version > OLDEST]
    if not found:
        raise SystemExit(f"there is no Python {'.'.join(map(str, OLDEST))} or newer with venv and ensurepip")
    version, path = max(found)
    return path, version


def version_of(python: Path) -> Version | None:
    """Return the version of a released Python that can create environments, else None."""
    try:
        done = subprocess.run([python, "-c", QUERY], capture_output=True, text=True, timeout=60)
        answer = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return tuple(answer) if answer else None


def set_up(python: Path, version: Version) -> None:
    """Create or upgrade the environment."""
    if not (VENV / "bin/pip").exists() or version_of(VENV / "bin/python") != version:
        free = shutil.disk_usage(ROOT).free / 1e9
        if free < REQUIRED_GB:
            raise SystemExit(f"test-newest needs {REQUIRED_GB} GB of free space at {ROOT}, found {free:.0f}")
        subprocess.run([python, "-m", "venv", "--clear", VENV], check=True)
    pip = [VENV / "bin/pip", "--disable-pip-version-check", "install", "--quiet", "--upgrade"]
    done = subprocess.run([*pip, "--upgrade-strategy", "eager", "--editable", ".[dev]"], cwd=ROOT)
    if done.returncode:
        raise SystemExit("the newest packages that pyproject.toml allows cannot be installed together")


def environment() -> dict[str, str]:
    """Return this process's environment with `.venv-newest` activated."""
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return {**kept, "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def copy_checkout(folder: Path) -> None:
    """Copy all files that Git does not ignore, as the only commit of a repository."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():  # a deleted file stays listed until its deletion is committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
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


def is_expected(line: str) -> bool:
    """Return whether the demo may print this line."""
    return any(re.fullmatch(pattern, line) for pattern in EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
