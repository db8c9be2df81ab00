"""The command line in this process."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from cli import main


class Result(NamedTuple):
    """The exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str


Invoke = Callable[..., Result]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Run `diffctl ARGUMENTS` in this process, its handling of errors included."""

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["diffctl", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main.main()
        return Result(int(end.value.code or 0), *capsys.readouterr())

    return run


def assert_refused(result: Result, *words: str, code: int = 2) -> None:
    """Assert that the command failed with one sentence that contains the words."""
    assert result.code == code, result.err
    assert result.err.startswith("diffctl: ")
    assert result.err.count("\n") == 1
    for word in words:
        assert word in result.err
