"""The set-up says what it would download in vain, before it does; nothing is installed here."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CUDA = r'{"install": [{"metadata": {"requires_dist": ["nvidia-nccl-cu13==2.30; platform_system"]}}]}'
CPU = r'{"install": [{"metadata": {"version": "2.13.0+cpu", "requires_dist": ["filelock"]}}]}'
THERE = r'{"install": []}'
PYTHON = """\
mkdir -p .venv/bin
echo '#!/bin/sh
echo "$@" >> asked
case "$*" in *--report*) cat report;; esac' > .venv/bin/pip
echo '#!/bin/sh
echo "python $@" >> asked' > .venv/bin/python
chmod +x .venv/bin/pip .venv/bin/python
"""
LS_OF_A_GPU = "echo /dev/nvidia0; exit 2"  # as it ends where one of what it is asked for is missing


def made(
    folder: Path, target: str, report: str, gpu: bool, system: str, *arguments: str
) -> tuple[str, list[str]]:
    """What a target says, and what pip was asked; Python, pip, uname and ls are not the machine's own."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "report").write_text(report)
    fakes = {"python3": PYTHON, "uname": f"echo {system}", "ls": LS_OF_A_GPU if gpu else "exit 2"}
    for name, body in fakes.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    command = ["make", target, *arguments]
    done = subprocess.run(command, cwd=folder, env={**env, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    asked = folder / "asked"
    return done.stdout, asked.read_text().splitlines() if asked.exists() else []


def set_up(folder: Path, *given: Any) -> tuple[str, list[str]]:
    """As `made` of the environment itself."""
    return made(folder, ".venv/.installed", *given)


@pytest.mark.parametrize(
    ("report", "gpu", "system", "told"),
    [
        (CUDA, False, "Linux x86_64", True),
        (CUDA, True, "Linux x86_64", False),
        (CUDA, False, "Darwin arm64", False),
        (CPU, False, "Linux x86_64", False),
        (THERE, False, "Linux x86_64", False),
        ("", False, "Linux x86_64", False),
    ],
)
def test_cuda_for_no_gpu_is_told_with_the_line_that_avoids_it(tmp_path, report, gpu, system, told) -> None:
    said, asked = set_up(tmp_path, report, gpu, system)
    assert ("make .venv/.installed TORCH=cpu" in said) == told
    assert asked[-1].endswith("--constraint constraints.txt --editable .")


def test_the_line_takes_the_build_for_cpus_and_keeps_everything_else(tmp_path) -> None:
    _, asked = set_up(tmp_path, CPU, False, "Linux x86_64", "TORCH=cpu")
    assert all("--extra-index-url https://download.pytorch.org/whl/cpu" in line for line in asked)
    assert not any("--index-url" in line.split() for line in asked)


@pytest.mark.parametrize(("target", "module"), [("test-gpu", "tests.gpu"), ("bench-gpu", "benchmarks.gpu")])
def test_what_needs_a_gpu_installs_nothing_where_there_is_none(tmp_path, target, module) -> None:
    said, asked = made(tmp_path, target, CUDA, False, "Linux x86_64")
    assert said.startswith("There is no NVIDIA GPU here, so nothing was ")
    assert asked == []
    _, asked = made(tmp_path, target, CUDA, True, "Linux x86_64")
    assert asked[-1] == f"python -m {module}"
    assert asked[-2].endswith("--editable .[dev]")
