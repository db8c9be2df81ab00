"""A command prints what it does before it imports slow packages; with --json it prints nothing."""

import pytest

from tests.helpers.invoke import Invoke


class Loaded(Exception):
    """The imports have begun."""


def load(*_: object) -> None:
    raise Loaded


@pytest.mark.parametrize(
    ("arguments", "variable", "message"),
    [
        ("nll", None, "loading the model …\n"),
        ("runs", None, "reading the runs …\n"),
        ("runs --json", None, ""),
        ("stage data", None, "preparing the stage data …\n"),
        ("stage data", "DVC_STAGE", ""),  # set by a process that printed a message already
    ],
)
def test_message_precedes_slow_imports(
    project, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, capsys, arguments, variable, message
) -> None:
    monkeypatch.setattr("cli.shared.command.load_reference", load)
    monkeypatch.setattr("cli.stages.context.enter_stage", load)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(Loaded):
        invoke(*arguments.split())
    assert capsys.readouterr().err == message
