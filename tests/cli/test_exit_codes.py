"""Exit codes of every command: wrong use and unreachable servers."""

from pathlib import Path
from typing import NamedTuple

import pytest
from typer.main import get_command

from cli.main import app
from diffusion.layout import TRAIN_RUNS
from diffusion.system.errors import REFUSED, TEMPORARY
from tests.helpers.invoke import Invoke, assert_refused
from tests.helpers.mlflow_server import free_port
from tracking.spool.event_log import Spool


class Row(NamedTuple):
    """Arguments that name something missing, and arguments that need MLflow, if the command does."""

    absent: tuple[str, ...]
    asking: tuple[str, ...] | None = None


OUT, RUN, MODEL = ("--out", "x.png"), ("--run-id", "abc"), ("--model", "no.safetensors")
LACKING = ("reference", "train", "classifier", "sample", "evaluate", "report")  # stages without their input
COMMANDS = {
    **dict.fromkeys(("deploy", "emit data-changed", "seeds", "prune"), Row(())),
    **{f"stage {name}": Row(()) for name in LACKING},
    **dict.fromkeys(("down", "status", "check", "schema", "stage data"), Row(("no-such-argument",))),
    **dict.fromkeys(("sync", "history"), Row(("no-such-argument",), ())),
    **dict.fromkeys(("sweep", "nll", "serve", "playground"), Row(MODEL, RUN)),
    **dict.fromkeys(("show variance", "show reverse", "show model"), Row(MODEL, RUN)),
    **dict.fromkeys(("show forward", "show steps"), Row(("--profile", "no-such-profile"))),
    "show samplers": Row(("--steps", "0")),
    "run": Row(("--push",)),  # no DVC remote
    "ui": Row(("--port", "0")),
    "up": Row(("--mlflow-port", "0")),
    "search": Row(("--name", "no/name")),
    "search-trial": Row(("no-such-folder",)),
    "use": Row(("no-such-profile",)),
    "sample": Row((*MODEL, *OUT), (*RUN, *OUT)),
    "evaluate": Row(("no-such-folder", "--against", "no-such-store")),
    "ema": Row(("--sigma-rel", "0.1", "--from", "no-such-folder")),
    "encode": Row(("no.png", *MODEL, "--out", "x.npz"), ("0", *RUN, "--out", "x.npz")),
    "interpolate": Row(("no.png", "0", *MODEL, *OUT), ("0", "1", *RUN, *OUT)),
    "compare": Row(("no.json", "no-either.json"), ("a", "b")),
    "promote": Row(("--force",), ("1",)),  # no reason given
    "rollback": Row(("--to", "0"), ()),
    "runs": Row(("no-such-command",), ()),
    "runs reap": Row(("--no-such-option",), ("abc",)),
    "import diffusers": Row(("no-such-folder",)),
    "import openai": Row(("no.pt", "--preset", "ddpm-cifar10", "--out", "x.safetensors")),
    "export diffusers": Row(("folder", *MODEL), ("folder", *RUN)),
}


def commands() -> list[str]:
    """Return every command of the application; a group counts if it does something alone."""
    found, waiting = [], [((), get_command(app))]
    while waiting:
        path, entry = waiting.pop()
        below = getattr(entry, "commands", {})
        waiting += [((*path, name), sub) for name, sub in below.items()]
        if path and (not below or entry.invoke_without_command):
            found.append(" ".join(path))
    return found


def test_table_contains_every_command() -> None:
    assert sorted(commands()) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_missing_input_is_wrong_use(name: str, project: Path, invoke: Invoke) -> None:
    done = invoke(*name.split(), *COMMANDS[name].absent)
    assert done.code == REFUSED, done.err
    assert done.err.startswith(("diffctl: ", "Usage: ")) or done.err.count("\n") < 3


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, row in COMMANDS.items() if row.asking is not None])
def test_unreachable_mlflow_is_a_temporary_error(name, project, invoke, monkeypatch) -> None:
    port = free_port()
    Spool(TRAIN_RUNS / ("f" * 16), "key", "a-run", "diffctl-digits").close("FINISHED")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
    done = invoke(*name.split(), *COMMANDS[name].asking or ())
    assert_refused(done, f"MLflow does not answer at http://127.0.0.1:{port} ", code=TEMPORARY)
    assert "secret" not in done.out + done.err


def test_unreachable_prefect_is_a_temporary_error(project, invoke, monkeypatch) -> None:
    (project / ".dvc").mkdir()
    monkeypatch.setenv("PREFECT_API_URL", "http://me:secret@127.0.0.1:1/api")
    done = invoke("run")
    assert_refused(done, "PREFECT_API_URL=http://127.0.0.1:1/api", code=TEMPORARY)
