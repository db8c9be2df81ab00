"""The outcome file of a stage: written on failure alone, and not inherited by child processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.stage_outcome import VARIABLE, StageOutcome, read_outcome
from tests.conftest import diffctl, environment

# A command that fails, or prints the variable that its child processes would inherit.
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


def test_a_signal_is_interrupted_whatever_the_code_raises(tmp_path: Path) -> None:
    code = (
        "import signal\n    try: signal.raise_signal(15)\n    except BaseException: raise KeyError from None"
    )
    done, written = run(tmp_path, code)
    assert written is not None
    assert (written.kind, written.exit_code, done.returncode) == ("interrupted", 143, 143)


def run(folder: Path, behaviour: str) -> "tuple[subprocess.CompletedProcess[str], StageOutcome | None]":
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
        ("raise UsageError('wrong')", StageOutcome("refused", "wrong", 2)),
        ("raise TemporaryError('away')", StageOutcome("temporary", "away", 75)),
        ("raise DiffctlError('it failed')", StageOutcome("failed", "it failed", 1)),
        ("raise KeyError('x')", StageOutcome("crashed", "KeyError: 'x'", 1)),
        ("sys.exit(0)", None),
        ("raise BrokenPipeError", None),
    ],
)
def test_a_failure_is_written_once_and_not_inherited(
    tmp_path: Path, behaviour: str, outcome: StageOutcome | None
) -> None:
    done, written = run(tmp_path, behaviour)
    assert written == outcome
    assert done.returncode == (0 if outcome is None else outcome.exit_code)
    assert ("Traceback" in done.stderr) == (outcome is not None and outcome.kind == "crashed")
    if behaviour != "raise BrokenPipeError":
        assert done.stdout == "None\n"


def test_a_real_stage_writes_its_outcome(project: Path) -> None:
    (project / "params.yaml").write_text("data: {}\n")
    place = project / "outcome.json"
    done = diffctl(project, "stage", "data", env={VARIABLE: str(place)})
    written = json.loads(place.read_text())
    assert (written["kind"], written["exit_code"]) == ("refused", done.returncode)
    assert done.stderr == f"diffctl: {written['sentence']}\n"
