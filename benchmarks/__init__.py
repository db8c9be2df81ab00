"""Measure what the project promises in seconds and images a second. Run with nothing else running.

This module has what the benchmarks share: commands, times, goals and the choice of measures.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
SMALL = "--small"  # only tries whether a benchmark runs


def seconds_of(call: Callable[[], object]) -> float:
    """Return the wall seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def made_by(cores: int) -> dict[str, str]:
    """Return date, commit, + if code was edited, and machine of a result by so many cores."""
    processor = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))[0]
    changed = git("diff", "HEAD", "--name-only", "--", "diffusion", "benchmarks")
    torch = version("torch").partition("+")[0]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": git("rev-parse", "--short=7", "HEAD") + ("+" if changed else ""),
        "machine": f"{cores} core{'s' * (cores > 1)} of {processor}, torch {torch}",
    }


def git(*arguments: str) -> str:
    """Return what Git prints in this checkout."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a process that imports this checkout and uses no server, with variables."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    no_servers = {"MLFLOW_TRACKING_URI": "", "PREFECT_API_URL": ""}
    return {**os.environ, **no_servers, "PATH": path, "PYTHONPATH": str(ROOT), **variables}


def run(folder: Path, *command: str, **variables: str) -> str:
    """Run a command in a folder and return its output, standard error included; exit if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(**variables),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)[:80]} failed:\n{done.stdout}")
    return done.stdout


def call_apart(folder: Path, module: str, call: str, **variables: str) -> str:
    """Return the last line that a call of a module's function prints, in a process of its own."""
    code = f"import benchmarks.{module} as module; print(module.{call})"
    return run(folder, sys.executable, "-c", code, **variables).splitlines()[-1]


def write_params(folder: Path, **sections: Mapping[str, Any]) -> None:
    """Write the params.yaml of the digits profile with changed keys."""
    values = yaml.safe_load((ROOT / "profiles/digits.yaml").read_text(encoding="utf-8"))
    for section, keys in sections.items():
        values[section] = {**values[section], **keys}
    (folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def print_goal(what: str, figure: str, goal: str, is_reached: bool) -> None:
    print(f"{what}: {figure} (goal: {goal}; {'reached' if is_reached else 'MISSED'})", flush=True)


def run_measures(measures: Mapping[str, Callable[[bool], None]]) -> None:
    """Run the measures that the command line names, or all; each gets whether `--small` is given."""
    given = sys.argv[1:]
    if unknown := {*given} - {*measures, SMALL}:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; the measures are {', '.join(measures)}")
    for name in [name for name in measures if name in given] or measures:
        measures[name](SMALL in given)
