"""The systemd units in deploy/: systemd accepts them, and their commands exist with the given options."""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

UNITS = sorted((ROOT / "deploy").rglob("*.service"))


def settings(unit: Path) -> dict[str, str]:
    """Return a unit's settings by name."""
    lines = unit.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"[A-Z]\w+=", line))


def started(unit: Path) -> list[str]:
    """Return the command line that a unit finally runs: a program of the environment, and its arguments."""
    line = settings(unit)["ExecStart"]
    words = shlex.split(line)
    return shlex.split(words[-1].rpartition("exec ")[2]) if words[0] == "/bin/sh" else words


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_verifies_the_unit_without_warnings(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    for one in unit.parent.glob("*.service"):  # also the units that it requires
        here = re.sub(r"/srv/diffctl/\.venv/bin/\w+", sys.executable, one.read_text())
        (tmp_path / one.name).write_text(here)
    line = [analyze, "verify", "--man=no", tmp_path / unit.name]
    result = subprocess.run(line, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_unit_uses_known_variables_and_its_processes_have_time_to_stop(unit: Path) -> None:
    """A training gets the signal itself, since its worker does not wait; of Ray, only the server gets it."""
    found = settings(unit)
    given = {line.partition("=")[0] for line in (ROOT / "deploy/diffctl.env").read_text().splitlines()}
    assert set(re.findall(r"\$(DIFFCTL_\w+)", unit.read_text())) <= given
    kill_modes = {"diffctl-worker": "control-group", "diffctl-serve": "mixed"}
    assert found.get("KillMode") == kill_modes.get(unit.stem)
    assert int(found.get("TimeoutStopSec", "90")) >= 60
    assert "exec " in found["ExecStart"] or "/bin/sh" not in found["ExecStart"], "the signal reaches it"


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_started_command_exists_with_its_options(unit: Path) -> None:
    program, *words = started(unit)
    name = Path(program).name
    assert name in {script.name for script in entry_points(group="console_scripts")}
    commands = itertools.takewhile(lambda word: not word.startswith("--"), words)
    line, env = [Path(sys.executable).with_name(name), *commands, "--help"], environment({"COLUMNS": "200"})
    result = subprocess.run(line, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(word in result.stdout for word in words if word.startswith("--"))
