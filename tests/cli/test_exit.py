"""How a command leaves: what it said is all that is seen, whatever C++ libraries say of what they leave."""

import subprocess
import sys
from pathlib import Path

import pytest

COMPLAINING = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.strdup.restype = ctypes.c_void_p
complaint = ctypes.c_void_p(libc.strdup(b"nanobind: leaked 4 instances!"))
libc.__cxa_atexit(ctypes.cast(libc.perror, ctypes.c_void_p), complaint, None)
"""
COMMAND = "from cli import main; main.main()"
REGISTERING = """
import atexit
from cli import main
app = main.app
main.app = lambda: (atexit.register(print, "at the end", file=sys.stderr), app())
main.main()
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's way of calling functions at exit")


def leave(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMPLAINING + code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_what_complains_at_exit_is_heard_without_us(tmp_path: Path) -> None:
    assert "nanobind: leaked" in leave("sys.exit(3)", tmp_path).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, ""),
        (["sample", "--out", "x.txt"], 2, "diffctl: --out x.txt: give a file that ends in"),
        (["check"], 2, "diffctl: "),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_a_command_says_what_it_has_to_and_no_more(
    tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    done = leave(COMMAND, tmp_path, *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "nanobind" not in done.stderr
    assert bool(done.stderr) == bool(said)


def test_what_python_calls_at_exit_is_still_heard(tmp_path: Path) -> None:
    assert leave(REGISTERING, tmp_path, "--help").stderr == "at the end\n"
