"""Shell completion of commands, options and the names in registries and profiles/."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers.invoke import Invoke


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("diffctl show re", ["reverse"]),
        ("diffctl sample --sampler uni", ["unipc"]),
        ("diffctl use cifar", ["cifar10", "cifar100"]),
    ],
)
def test_completes_commands_choices_and_profiles(
    project: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, words: str, found: list[str]
) -> None:
    shutil.copytree(ROOT / "profiles", project / "profiles")
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None)  # so that argv names the program
    monkeypatch.setenv("_DIFFCTL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert invoke().out.split() == found
