"""The first moments of any command: a Ctrl-C ends it without a traceback, whatever is being imported."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment


@pytest.mark.parametrize("number", [3, 10, 30, 60, 100, 150, 180])
@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_starts_ends_silently(tmp_path: Path, number: int, told: signal.Signals) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.moments", "use", "none"],
        env=environment({"MOMENT": f"use none:import:{number}:{told.value}"}),
        capture_output=True,
        text=True,
    )
    assert done.returncode in (-told, 128 + told), done.stderr
    assert done.stdout == ""
    assert done.stderr in (
        "",
        f"diffctl: stopped by {told.name}: the same command goes on from what is finished\n",
    )
