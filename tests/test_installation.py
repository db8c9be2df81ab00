"""The Makefile, the Dockerfile and the wheel: warnings, working environments. Nothing is downloaded."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import diffctl
from diffctl.__main__ import main
from diffctl.installation import other_distributions
from diffusion.version import VERSION
from tests.conftest import ROOT, environment, run_python
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


def test_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (project["version"], diffctl.__version__) == (VERSION, VERSION)


FOREIGN = """
import sys
from diffctl.__main__ import main
sys.argv = ["diffctl", "--version"]
main()
"""


def test_windows_is_refused_in_one_sentence(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as refusal:
        main()
    assert (refusal.value.code, capsys.readouterr().err.count("\n")) == (2, 1)


@pytest.mark.slow
def test_package_of_another_distribution_is_named(tmp_path, monkeypatch) -> None:
    """In front of diffctl's it is refused with the remedy; behind it `check` reports it."""
    info = tmp_path / "workflows-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: workflows\nVersion: 1.0\n")
    (info / "RECORD").write_text("flows/__init__.py,,\n")
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/__init__.py").touch()
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = run_python(tmp_path, "-P", "-c", FOREIGN, env={"PYTHONPATH": path})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"diffctl: the package flows .*/flows/__init__.py \(workflows\) .* of its own.*\n", done.stderr
    )
    done = run_python(ROOT, "-P", "-c", "from diffctl import fit", env={"PYTHONPATH": path})
    assert "ImportError: the package flows of diffctl is " in done.stderr
    monkeypatch.syspath_prepend(tmp_path)
    assert other_distributions() == {"flows": ["workflows"]}


@pytest.fixture
def environment_of_packages(tmp_path: Path) -> Path:
    """A new virtual environment with access to the packages here, without diffctl."""
    venv = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    there = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    (there / "here.pth").write_text("".join(f"{place}\n" for place in sys.path if "site-packages" in place))
    return venv


USED = """
from pathlib import Path
import diffctl, diffctl.installation
print(Path(diffctl.__file__).is_relative_to("%s"), diffctl.SampleSettings().steps)
"""


@pytest.mark.slow
def test_wheel_is_reproducible_and_complete(tmp_path, environment_of_packages: Path) -> None:
    wheels = []
    for name in ("one", "two"):
        copy_files(tmp_path / name)
        line = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            "dist",
            ".",
        ]
        run(line, tmp_path / name, environment({"SOURCE_DATE_EPOCH": "1700000000"}))
        wheels += (tmp_path / name / "dist").iterdir()
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
    bin, folder = environment_of_packages / "bin", tmp_path / "empty"
    folder.mkdir()
    env = environment({"PATH": f"{bin}:/usr/bin:/bin", "PYTHONPATH": ""})
    install = ["python", "-m", "pip", "install", "-q", "--no-deps", "--ignore-installed"]
    run([*install, str(wheels[0])], folder, env)
    assert run(["diffctl", "--version"], folder, env) == f"diffctl {VERSION}\n"
    assert run(["diffctl", "docs", "sweep"], folder, env) == (ROOT / "docs/sweep.md").read_text()
    run(["diffctl", "use", "digits"], folder, env)
    assert (folder / "params.yaml").read_text() == (ROOT / "profiles/digits.yaml").read_text()
    assert run(["python", "-c", USED % environment_of_packages], folder, env) == "True 50\n"
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = {name.partition("/")[2] for name in wheel.namelist()}
    in_git = run(["git", "ls-files", "profiles", "deploy", ":(glob)docs/*.md"], ROOT, env).split()
    assert "project/dvc.yaml" not in names, "DVC would read it in a project's .venv"
    assert names >= {*in_git, "licenses/LICENSE", "licenses/NOTICE"}


@pytest.mark.long
def test_steps_set_up_a_working_environment(tmp_path: Path, environment_of_packages: Path) -> None:
    """Run the steps in order, in a new folder and a new environment with access to the packages here."""
    folder, venv = tmp_path / "build", environment_of_packages
    folder.mkdir()
    env = environment({"PATH": f"{venv}/bin:/usr/bin:/bin", "PYTHONPATH": "", "MAKEFLAGS": ""})
    for line in re.findall(r"^(?:COPY|RUN) .+$", TEXT, re.MULTILINE):
        if line.startswith("COPY") and "--from" not in line:
            copy_files(folder, *line.split()[1:-1])
        elif line.startswith(("RUN make", "RUN /opt")):
            script = line.removeprefix("RUN ").replace("/opt/diffctl", str(venv))
            script = script.replace("--force-reinstall", "--force-reinstall --no-build-isolation")
            run(["sh", "-c", script], folder, {**env, **dict(re.findall(r"^ARG (\w+)=(\S+)$", TEXT, re.M))})
    shutil.rmtree(folder)
    run(["diffctl", "init", "project", "--profile", "digits"], tmp_path, env)
    assert "data/prepared" in run(["python", "-m", "dvc", "repro", "data"], tmp_path / "project", env)
    assert (tmp_path / "project/data/prepared").is_dir()


def run(words: list[str], folder: Path, env: dict[str, str]) -> str:
    """Run a command that must succeed, and return its stdout."""
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout
