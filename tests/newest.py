"""What a newcomer's machine installs: the newest Python here, the newest of all that pyproject.toml allows.

    make test-newest

constraints.txt has no say in `.venv-newest`, and torch is PyPI's, on Linux the CUDA build. The fast tests are
run there, and the demo, in a copy of this checkout. The demo may say nothing but EXPECTED: a library that has
begun to warn, or to complain at exit, is heard here before a user hears it.
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
ROOM = 12  # GB that the set-up may take
ASK = (
    "import ensurepip, json, sys, venv; v = sys.version_info; "
    "print(json.dumps(v[:3] if v.releaselevel == 'final' else None))"
)
OLDEST = (3, 11)
Version = tuple[int, ...]

EXPECTED = (
    r"==> starting; Ctrl-C saves what there is, and the same command goes on",
    r"==> (data|reference|train|sample|evaluate|report)",
    r"(data|reference|train|evaluate|steps\d+-eta[\d.]+) [\d,]+/[\d,]+( · [^·]+)*",
    r"data/prepared: [\d,]+ train, [\d,]+ test images of 8×8×1, 10 classes",
    r"train: [\d,]+ steps, state in runs/train/[0-9a-f]{16}",
    r"model: models/model\.safetensors",
    r"report: report/index\.html",
    r"STEPS +ETA +fd_\S+ +excess +kd_\S+ *",
    r"\d+ +[\d.]+( +-?[\d.]+(e-?\d+)?){3} *\*?",
    r"\d+ images a cell against [\d,]+ of digits \(train\), extractor \S+; \* the best by \S+",
    r"its \S+ is about [\d.]+ too low, as the least of \d+",
    r"model:  diffctl-digits version \d+: .*",
    r"runs:   `make ui` .*",
    r"",
)


def main() -> None:
    """Set up, test, run the demo; SystemExit with a sentence where something is not as it should be."""
    python, version = newest_python(search_path())
    said = ".".join(map(str, version))
    print(f"Setting up .venv-newest with Python {said} and the newest of everything ...", flush=True)
    set_up(python, version)
    tests = [str(VENV / "bin/python"), "-m", "pytest", "-n", "2", "-m", "not slow and not long"]
    if subprocess.run(tests, cwd=ROOT, env=environment()).returncode:
        raise SystemExit(f"the fast tests fail with Python {said} and the newest of everything")
    with tempfile.TemporaryDirectory(prefix="diffctl-newest-") as folder:
        copy_checkout(Path(folder))
        unexpected = [line for line in demo(Path(folder)) if not is_expected(line)]
    if unexpected:
        shown = "\n  ".join(unexpected[:20])
        raise SystemExit(f"the demo said {len(unexpected)} lines that a user should not see:\n  {shown}")
    print("the demo ran, and said nothing but what it should")


def search_path() -> list[Path]:
    """Where Pythons may lie: on PATH, and those that pyenv keeps."""
    kept = sorted(Path.home().glob(".pyenv/versions/*/bin"))
    return [*map(Path, os.environ.get("PATH", os.defpath).split(os.pathsep)), *kept]


def newest_python(folders: Sequence[Path]) -> tuple[Path, Version]:
    """The newest released Python in the folders that can make environments, and its version."""
    names = {path for folder in folders for path in folder.glob("python3.*") if path.suffix[1:].isdigit()}
    found = [(version, path) for path in sorted(names) if (version := version_of(path)) and version > OLDEST]
    if not found:
        raise SystemExit(f"there is no Python {'.'.join(map(str, OLDEST))} or newer with venv and ensurepip")
    version, path = max(found)
    return path, version


def version_of(python: Path) -> Version | None:
    """The version of a Python that is released and can make environments, else None."""
    try:
        done = subprocess.run([python, "-c", ASK], capture_output=True, text=True, timeout=60)
        answer = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return tuple(answer) if answer else None


def set_up(python: Path, version: Version) -> None:
    """Make or renew the environment."""
    if not (VENV / "bin/pip").exists() or version_of(VENV / "bin/python") != version:
        free = shutil.disk_usage(ROOT).free / 1e9
        if free < ROOM:
            raise SystemExit(f"test-newest needs {ROOM} GB of room at {ROOT}, and there are {free:.0f}")
        subprocess.run([python, "-m", "venv", "--clear", VENV], check=True)
    pip = [VENV / "bin/pip", "--disable-pip-version-check", "install", "--quiet", "--upgrade"]
    done = subprocess.run([*pip, "--upgrade-strategy", "eager", "--editable", ".[dev]"], cwd=ROOT)
    if done.returncode:
        raise SystemExit("the newest of everything that pyproject.toml allows cannot be installed together")


def environment() -> dict[str, str]:
    """This process's environment with `.venv-newest` activated."""
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return {**kept, "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def copy_checkout(folder: Path) -> None:
    """Everything here that is no product, as the only commit of a repository."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():  # not one that is deleted and not yet committed so
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "begin"]):
        subprocess.run(["git", *author, *command], cwd=folder, check=True)


def demo(folder: Path) -> Iterator[str]:
    """The lines that `make demo` says on stdout and stderr, as they come; SystemExit when it fails."""
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
    """Whether it is a line that the demo should say."""
    return any(re.fullmatch(pattern, line) for pattern in EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
