"""The first moments of any command: no traceback of a Ctrl-C, and no word of a library."""

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
    assert done.returncode == 128 + told, done.stderr
    assert done.stdout == ""
    assert done.stderr in (
        "",
        f"diffctl: stopped by {told.name}: the same command goes on from what is finished\n",
    )


QUIET = """
import cli.main

def work():
    import logging, warnings
    import matplotlib.figure, matplotlib.font_manager
    logging.getLogger("some.library").warning("to whoever develops with it")
    warnings.warn("that too")

cli.main.app = work
cli.main.main()
"""


def test_nothing_of_what_libraries_warn_of_is_seen(tmp_path: Path) -> None:
    nowhere = "/proc/nowhere"
    done = subprocess.run(
        [sys.executable, "-c", QUIET],
        env=environment({"HOME": nowhere, "MPLCONFIGDIR": nowhere, "XDG_CACHE_HOME": nowhere}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
