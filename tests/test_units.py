"""systemd's units in deploy/: systemd reads them, and what they start is there with its options."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

OWN = sorted((ROOT / "deploy").glob("*.service"))
UNITS = sorted((ROOT / "deploy").rglob("*.service"))


def settings(unit: Path) -> dict[str, str]:
    """A unit's settings by name."""
    lines = unit.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"[A-Z]\w+=", line))


def started(unit: Path) -> list[str]:
    """What a unit starts at last: the program of the environment, and its words."""
    line = settings(unit)["ExecStart"]
    words = shlex.split(line)
    return shlex.split(words[-1].rpartition("exec ")[2]) if words[0] == "/bin/sh" else words


def test_there_are_units() -> None:
    assert {unit.stem for unit in UNITS} == {
        *("diffctl-servers", "diffctl-worker", "diffctl-serve"),
        *("diffctl-mlflow", "diffctl-prefect"),
    }


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_reads_it_without_a_complaint(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    for one in unit.parent.glob("*.service"):  # also those that it wants
        here = re.sub(r"/srv/diffctl/\.venv/bin/\w+", sys.executable, one.read_text())
        (tmp_path / one.name).write_text(here)
    told = subprocess.run(
        [analyze, "verify", "--man=no", tmp_path / unit.name], capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", OWN, ids=lambda unit: unit.stem)
def test_it_knows_its_folders_by_the_file_that_is_copied_with_it(unit: Path) -> None:
    given = {line.partition("=")[0] for line in (unit.parent / "diffctl.env").read_text().splitlines()}
    assert set(re.findall(r"\$(DIFFCTL_\w+)", unit.read_text())) <= given
    assert settings(unit)["EnvironmentFile"] == "%E/diffctl/env"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_whole_family_has_time_to_end(unit: Path) -> None:
    """A training is told itself, since its worker does not wait; Ray is told by its server alone."""
    found = settings(unit)
    told = {"diffctl-worker": "control-group", "diffctl-serve": "mixed"}
    assert found.get("KillMode") == told.get(unit.stem)
    assert int(found.get("TimeoutStopSec", "90")) >= 60
    assert "exec " in found["ExecStart"] or "/bin/sh" not in found["ExecStart"], "the signal reaches it"


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_what_it_starts_is_there_with_the_options_that_are_given(unit: Path) -> None:
    program, *words = started(unit)
    name = Path(program).name
    assert name in {script.name for script in entry_points(group="console_scripts")}
    commands = [word for word in words if not word.startswith("--")]
    options = [word for word in words if word.startswith("--")]
    if options:  # their values, which are no commands, stand behind them
        commands = words[: words.index(options[0])]
    told = subprocess.run(
        [Path(sys.executable).with_name(name), *commands, "--help"],
        env=environment({"COLUMNS": "200"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    for option in options:
        assert option in told.stdout
