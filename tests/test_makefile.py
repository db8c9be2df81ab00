"""The installation warns before it downloads CUDA packages without a GPU; nothing is installed here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(
        ["make", target], cwd=folder, env={**env, "PATH": path}, capture_output=True, text=True
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


@pytest.mark.parametrize(("target", "module"), [("test-gpu", "pytest"), ("bench-gpu", "benchmarks.gpu")])
def test_gpu_targets_install_nothing_without_a_gpu(tmp_path, target, module) -> None:
    output, calls = run_make(tmp_path, target, CUDA, False)
    assert output.startswith("There is no NVIDIA GPU here, so nothing was ")
    assert calls == []
    _, calls = run_make(tmp_path, target, CUDA, True)
    assert calls[-1].startswith(f"python -m {module}")
    assert calls[-2].endswith("--editable .[dev]")
