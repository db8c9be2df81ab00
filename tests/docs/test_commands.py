"""Every command on the pages exists, with its options."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.commands.project import pages
from cli.main import app
from tests.conftest import ROOT
from tests.helpers.invoke import assert_refused

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
LINE = re.compile(r"^(?: {4}|\$ )?((?:timeout [^\n]* )?diffctl [^\n]*)$|`(diffctl [^`]*)`", re.M)
PLACEHOLDER = re.compile(r"[A-Z…\[<{]")
END = re.compile(r"\s(\|\||&&|[|>;\\]|#)(\s|$)|[;)]$")
TOP = typer.main.get_command(app)


def commands_of(page: Path) -> Iterator[str]:
    """The command lines of a page, in code blocks and within sentences."""
    for line in LINE.finditer(page.read_text(encoding="utf-8")):
        text_part = re.split(r" {3,}", line[1])[0] if line[1] else line[2]  # a comment follows
        text = re.sub(r"\s+", " ", text_part)
        yield END.split(text[text.index("diffctl ") :])[0].strip()


def wrong(line: str) -> str | None:
    """What of a command line there is not; None where all of it is."""
    try:
        words = shlex.split(line, comments=True)[1:]
    except ValueError:
        words = line.split()[1:]
    at: Any = TOP
    known = options(TOP)
    for position, word in enumerate(words):
        names = word.split("|") if position == 0 or not word.startswith("-") else [word]
        if word.startswith("--"):
            if word.split("=")[0] not in known:
                return word
        elif hasattr(at, "commands"):
            if PLACEHOLDER.match(word):
                return None
            if not all(name in at.commands for name in names):
                return word
            at = at.commands[names[0]]
            known |= options(at)
    return None


def options(command: Any) -> set[str]:
    return {"--help"} | {name for one in command.params for name in (*one.opts, *one.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_of_a_page_is_there(page: Path) -> None:
    lines = list(commands_of(page))
    assert [(line, what) for line in lines if (what := wrong(line))] == []


def test_commands_are_found_in_readme_and_tutorial() -> None:
    assert all(len(list(commands_of(ROOT / name))) > 10 for name in ("README.md", "docs/tutorial.md"))


def test_pages_of_the_documentation_are_printed_and_those_that_messages_name_exist(invoke) -> None:
    packages = ("cli", "diffusion", "flows", "serving", "tracking")
    files = [file for name in packages for file in (ROOT / name).rglob("*.py")]
    files += [*(ROOT / "profiles").glob("*.yaml"), *(ROOT / "diffctl/project").iterdir(), ROOT / "README.md"]
    named = {name for file in files for name in re.findall(r"`diffctl docs ([a-z/.]+)`", file.read_text())}
    assert {"data", "extending", "operations"} <= named <= pages().keys()
    assert invoke("docs", "data").out == (ROOT / "docs/data.md").read_text()
    assert invoke("docs", "deploy/nginx.conf").out == (ROOT / "deploy/nginx.conf").read_text()
    assert "sweep" in invoke("docs").out
    assert_refused(invoke("docs", "trainin"), "did you mean training?", "`diffctl docs` lists them")
