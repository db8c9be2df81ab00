"""The Makefile and the Dockerfile: warnings, and a working environment. Nothing is downloaded here."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment
from tests.newest import copy_files

CUDA = r'{"install": [{"metadata": {"requires_dist": ["nvidia-nccl-cu13==2.30; platform_system"]}}]}'
CPU = r'{"install": [{"metadata": {"version": "2.13.0+cpu", "requires_dist": ["filelock"]}}]}'
PYTHON = """\
mkdir -p .venv/bin
echo '#!/bin/sh
echo "$@" >> calls
case "$*" in *--report*) cat report;; esac' > .venv/bin/pip
echo '#!/bin/sh
echo "python $@" >> calls' > .venv/bin/python
chmod +x .venv/bin/pip .venv/bin/python
"""
INSTALL = ".venv/.installed"
FROM_MAKE = ("MAKEFLAGS", "MAKELEVEL", "PYTHON", "TORCH", "EXTRAS")  # of the `make` that runs the tests
LS_OF_A_GPU = "echo /dev/nvidia0; exit 2"  # like ls if one of its arguments does not exist


def run_make(folder: Path, target: str, report: str, gpu: bool) -> tuple[str, list[str]]:
    """Return a target's stdout and the calls of pip and Python; Python, pip, uname and ls are fakes."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "report").write_text(report)
    fakes = {"python3": PYTHON, "uname": "echo Linux x86_64", "ls": LS_OF_A_GPU if gpu else "exit 2"}
    for name, body in fakes.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {name: value for name, value in os.environ.items() if name not in FROM_MAKE}
    done = subprocess.run(
        ["make", *target.split()], cwd=folder, env={**env, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    calls = folder / "calls"
    return done.stdout, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize(
    ("report", "gpu", "warns"), [(CUDA, False, True), (CUDA, True, False), (CPU, False, False)]
)
def test_cuda_without_a_gpu_warns_with_the_command_for_cpu(tmp_path, report, gpu, warns) -> None:
    output, calls = run_make(tmp_path, INSTALL, report, gpu)
    assert ("make .venv/.installed TORCH=cpu" in output) == warns
    assert calls[-1].endswith("--constraint constraints.txt --editable .")


def test_only_torch_is_requested_from_pytorchs_index(tmp_path) -> None:
    _, calls = run_make(tmp_path, f"{INSTALL} TORCH=cpu", CPU, False)
    first, *others = (call for call in calls if " install " in call)
    assert first.endswith("--no-deps --index-url https://download.pytorch.org/whl/cpu torch")
    assert not [call for call in others if "pytorch.org" in call]


@pytest.mark.parametrize(("target", "module"), [("test-gpu", "pytest"), ("bench-gpu", "benchmarks.gpu")])
def test_gpu_targets_install_nothing_without_a_gpu(tmp_path, target, module) -> None:
    output, calls = run_make(tmp_path, target, CUDA, False)
    assert output.startswith("There is no NVIDIA GPU here, so nothing was ")
    assert calls == []
    _, calls = run_make(tmp_path, target, CUDA, True)
    assert calls[-1].startswith(f"python -m {module}")
    assert calls[-2].endswith("--editable .[dev]")


TEXT = (ROOT / "Dockerfile").read_text()


def test_outputs_of_commands_are_excluded_from_the_image() -> None:
    made = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line[0] != "#"}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    inside = {pattern.removeprefix("**/") for pattern in ignored if pattern[0] != "#"}
    assert made - inside <= {".venv", ".venv-newest"}
    assert {".git", ".venv*"} <= inside


@pytest.mark.long
def test_steps_set_up_a_working_environment(tmp_path: Path) -> None:
    """Run the steps in order, in a new folder and a new environment with access to the packages here."""
    folder, venv = tmp_path / "diffctl", tmp_path / "environment"
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    here, there = (Path(sysconfig.get_path("purelib", vars=place)) for place in (None, {"base": str(venv)}))
    (there / "here.pth").write_text(f"{here}\n")
    env = environment({"PATH": f"{venv}/bin:/usr/bin:/bin", "PYTHONPATH": str(folder), "MAKEFLAGS": ""})
    for line in re.findall(r"^(?:COPY|RUN) .+$", TEXT, re.MULTILINE):
        if line.startswith("COPY"):
            copy_files(folder, *line.split()[1:-1])
        elif line.startswith("RUN make"):
            script = line.removeprefix("RUN ").replace("/opt/diffctl", str(venv))
            run(["sh", "-c", script], folder, {**env, **dict(re.findall(r"^ARG (\w+)=(\S+)$", TEXT, re.M))})
        elif "git init" in line:
            run(["git", "init", "--quiet"], folder, env)
    python = f"{venv}/bin/python"
    code = run([python, "-c", "import cli; print(cli.__file__)"], folder, env)
    assert code == f"{folder}/cli/__init__.py\n"
    assert "data/prepared" in run([python, "-m", "dvc", "repro", "--single-item", "data"], folder, env)
    assert (folder / "data/prepared").is_dir()


def run(words: list[str], folder: Path, env: dict[str, str]) -> str:
    """Run a command that must succeed, and return its stdout."""
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout
