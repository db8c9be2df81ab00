"""Every command's exit codes: the one table, and what each command answers to wrong use and to an outage."""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.main import get_command

from cli.main import app
from diffusion.layout import TRAIN_RUNS
from diffusion.protocol.scores import write_document
from diffusion.system.errors import EXIT_CODES, KEPT_OUT, REFUSED, TEMPORARY
from tests.conftest import ROOT, command, diffctl, environment
from tests.helpers.mlflow_server import free_port
from tests.helpers.scores_document import document
from tracking.spool import Spool


class Row(NamedTuple):
    """Arguments that name what is not there, and arguments with which the command asks MLflow, if any do."""

    absent: tuple[str, ...]
    asking: tuple[str, ...] | None = None


OUT = ("--out", "x.png")
RUN = ("--run-id", "abc")
COMMANDS = {
    "run": Row(("--push",)),  # no DVC remote
    "ui": Row(("--port", "0")),
    "up": Row(("--mlflow-port", "0")),
    "down": Row(("no-such-argument",)),
    "status": Row(("no-such-argument",)),
    "deploy": Row(()),
    "emit data-changed": Row(()),
    "sweep": Row(("--model", "no.safetensors"), RUN),
    "search": Row(("--name", "no/name")),
    "search-trial": Row(("no-such-folder",)),
    "use": Row(("no-such-profile",)),
    "check": Row(("no-such-argument",)),
    "sample": Row(("--model", "no.safetensors", *OUT), (*RUN, *OUT)),
    "evaluate": Row(("no-such-folder", "--against", "no-such-store")),
    "ema": Row(("--width", "0.1", "--from", "no-such-folder")),
    "nll": Row(("--model", "no.safetensors"), RUN),
    "encode": Row(("no.png", "--model", "no.safetensors", "--out", "x.npz"), ("0", *RUN, "--out", "x.npz")),
    "interpolate": Row(("no.png", "0", "--model", "no.safetensors", *OUT), ("0", "1", *RUN, *OUT)),
    "compare": Row(("no.json", "no-either.json"), ("a", "b")),
    "seeds": Row(()),
    "sync": Row(("no-such-argument",), ()),
    "promote": Row(("--force",), ("1",)),  # no reason given
    "rollback": Row(("--to", "0"), ()),
    "history": Row(("no-such-argument",), ()),
    "prune": Row(()),
    "schema": Row(("no-such-argument",)),
    "serve": Row(("--model", "no.safetensors"), RUN),
    "playground": Row(("--model", "no.safetensors"), RUN),
    "show forward": Row(("--profile", "no-such-profile")),
    "show steps": Row(("--profile", "no-such-profile")),
    "show variance": Row(("--model", "no.safetensors"), RUN),
    "show reverse": Row(("--model", "no.safetensors"), RUN),
    "show model": Row(("--model", "no.safetensors"), RUN),
    "show samplers": Row(("--steps", "0")),
    "runs": Row(("no-such-command",), ()),
    "runs reap": Row(("--no-such-option",), ("abc",)),
    "stage data": Row(("no-such-argument",)),
    "stage reference": Row(()),
    "stage train": Row(()),
    "stage classifier": Row(()),
    "stage sample": Row(()),
    "stage evaluate": Row(()),
    "stage report": Row(()),
    "import diffusers": Row(("no-such-folder",)),
    "import openai": Row(("no.pt", "--preset", "ddpm-cifar10", "--out", "x.safetensors")),
    "export diffusers": Row(("folder", "--model", "no.safetensors"), ("folder", *RUN)),
}


def commands() -> list[str]:
    """Every command of the application, a group that does something alone too."""
    found, waiting = [], [((), get_command(app))]
    while waiting:
        path, entry = waiting.pop()
        below = getattr(entry, "commands", {})
        waiting += [((*path, name), sub) for name, sub in below.items()]
        if path and (not below or entry.invoke_without_command):
            found.append(" ".join(path))
    return found


def test_every_command_is_here() -> None:
    assert sorted(commands()) == sorted(COMMANDS)


def test_the_docs_have_the_table() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    listed = {int(code): words for code, words in re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)}
    assert listed == EXIT_CODES
    named = re.search(r"Exit codes: ([^.]*)\.", (ROOT / "README.md").read_text())
    assert named is not None
    assert {int(code) for code in re.findall(r"\b\d+\b", named[1])} <= set(EXIT_CODES)
    assert {0, 1, REFUSED, KEPT_OUT, TEMPORARY, 130, 143} <= {
        int(n) for n in re.findall(r"\b\d+\b", named[1])
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_not_there_is_wrong_use_of_every_command(name: str, project: Path) -> None:
    done = diffctl(project, *name.split(), *COMMANDS[name].absent)
    assert done.returncode == REFUSED, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(("diffctl: ", "Usage: ")) or done.stderr.count("\n") < 3


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, row in COMMANDS.items() if row.asking is not None])
def test_an_mlflow_that_does_not_answer_may_answer_later(name: str, project: Path) -> None:
    port = free_port()
    Spool(TRAIN_RUNS / ("f" * 16), "key", "a-run", "diffctl-digits").close("FINISHED")
    uri = f"http://me:secret@127.0.0.1:{port}"
    done = diffctl(project, *name.split(), *COMMANDS[name].asking or (), env={"MLFLOW_TRACKING_URI": uri})
    assert done.returncode == TEMPORARY, done.stderr
    said = f"diffctl: MLflow does not answer at http://127.0.0.1:{port} (Connection refused): try again when"
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stdout + done.stderr


def test_a_prefect_that_does_not_answer_may_answer_later(project: Path) -> None:
    (project / ".dvc").mkdir()
    done = diffctl(project, "run", env={"PREFECT_API_URL": "http://me:secret@127.0.0.1:1/api"})
    assert done.returncode == TEMPORARY
    assert done.stderr.startswith(
        "diffctl: no Prefect server answers at PREFECT_API_URL=http://127.0.0.1:1/api: start it"
    )


@pytest.mark.parametrize("arguments", [("--help",), ("use", "--help"), ("compare", "s.json", "s.json")])
def test_a_reader_that_leaves_is_no_error(arguments: tuple[str, ...], project: Path) -> None:
    write_document(project / "s.json", document())
    code = f"import subprocess; p = subprocess.Popen({command(*arguments)!r}, stdout=subprocess.PIPE)\n"
    code += "p.stdout.close(); raise SystemExit(p.wait())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=project, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_output_that_takes_nothing_is_told_in_a_sentence(project: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("--help"), env=environment(), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.startswith("diffctl: ")
    assert "Traceback" not in done.stderr
