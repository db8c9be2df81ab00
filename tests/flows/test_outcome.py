"""What a command tells its supervisor of its end: on failure alone, and for itself alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion.system.errors import DiffctlError
from flows.outcome import VARIABLE, Outcome, outcome_place, read_outcome
from tests.conftest import diffctl, environment

# A command that fails, or prints what the processes that it starts would see.
COMMAND = """
import os, sys
import cli.main
from diffusion.system.errors import DiffctlError, TemporaryError, UsageError

def work():
    print(os.environ.get("DIFFCTL_OUTCOME"))
    BEHAVIOUR

cli.main.app = work
cli.main.main()
"""


def run(folder: Path, behaviour: str) -> "tuple[subprocess.CompletedProcess[str], Outcome | None]":
    place = folder / "outcome.json"
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.replace("BEHAVIOUR", behaviour)],
        env=environment({VARIABLE: str(place)}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done, read_outcome(place)


@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [
        ("raise UsageError('wrong')", Outcome("refused", "wrong", 2)),
        ("raise TemporaryError('away')", Outcome("temporary", "away", 75)),
        ("raise DiffctlError('it failed')", Outcome("failed", "it failed", 1)),
        ("raise KeyError('x')", Outcome("crashed", "KeyError: 'x'", 1)),
        (
            "import signal\n    try: signal.raise_signal(15)\n"
            "    except BaseException: raise KeyError from None",
            Outcome("interrupted", "stopped by SIGTERM: the same command goes on from what is finished", 143),
        ),
        ("pass", None),
        ("sys.exit(0)", None),
        ("raise BrokenPipeError", None),
    ],
)
def test_a_failure_is_told_once_and_to_no_process_that_it_starts(
    tmp_path: Path, behaviour: str, outcome: Outcome | None
) -> None:
    done, told = run(tmp_path, behaviour)
    assert told == outcome
    assert done.returncode == (0 if outcome is None else outcome.exit_code)
    assert ("Traceback" in done.stderr) == (outcome is not None and outcome.kind == "crashed")
    if behaviour != "raise BrokenPipeError":
        assert done.stdout == "None\n"


def test_a_real_stage_tells_it(project: Path) -> None:
    (project / "params.yaml").write_text("data: {}\n")
    place = project / "outcome.json"
    done = diffctl(project, "stage", "data", env={VARIABLE: str(place)})
    told = json.loads(place.read_text())
    assert (told["kind"], told["exit_code"]) == ("refused", done.returncode)
    assert done.stderr == f"diffctl: {told['sentence']}\n"


def test_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    with outcome_place() as place:
        assert place.parent.stat().st_mode & 0o777 == 0o700
        assert read_outcome(place) is None
    Outcome("failed", "too late", 1).write(place)
    assert not place.parent.exists()
    done, told = run(tmp_path / "gone", "raise DiffctlError('it failed')")
    assert (done.returncode, done.stderr, told) == (DiffctlError.exit_code, "diffctl: it failed\n", None)
    assert os.listdir(tmp_path) == []
