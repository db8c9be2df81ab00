"""A command tells a person what it does before it loads what takes seconds, and tells a script nothing."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import typer.main

from cli.main import app
from tests.conftest import environment, write_params
from tests.helpers.mlflow_server import free_port

ROOT = Path(__file__).parents[2]
Said = dict[str, list[str] | None]
MODEL = ["--model", "model.safetensors"]
PICTURE = ["--out", "a.png", *MODEL]
STAGES = ("data", "reference", "train", "sample", "evaluate", "report", "classifier")
LOADING = {  # with the arguments that bring it to its first heavy import
    "run": [],
    "ui": ["--port", str(free_port())],
    "use": ["--start", "model.safetensors"],
    "check": [],
    "schema": [],
    "sample": PICTURE,
    "evaluate": ["a.npz", "--against", "b.npz"],
    "sweep": MODEL,
    "search": [],
    "nll": PICTURE,
    "ema": ["--width", "0.1"],
    "encode": ["0", *PICTURE],
    "interpolate": ["0", "1", *PICTURE],
    "import openai": ["a.pt", "--preset", "adm-64"],
    "import diffusers": ["a"],
    "export diffusers": ["b", *MODEL],
    "runs": [],
    "compare": ["a", "b"],
    **{f"show {figure}": [] for figure in ("forward", "steps", "variance", "reverse", "model", "samplers")},
    "promote": ["1"],
    "rollback": [],
    "history": [],
    "serve": MODEL,
    "playground": MODEL,
    "prune": [],
    **{f"stage {name}": [] for name in STAGES},
}
# Those that ask or start a server first, or find nothing to do here; a trial, whose search speaks.
OTHERS = {"up", "down", "status", "deploy", "emit data-changed", "sync", "seeds", "runs reap", "search-trial"}


def commands(command: click.Command, *names: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below this one that does something, by its name."""
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, *names, name)
    if not getattr(command, "no_args_is_help", False) and names:
        yield " ".join(names), command


EVERY = dict(commands(typer.main.get_command(app)))
FOR_SCRIPTS = ("check", "sample", "runs", "compare", "show steps", "history")
TELLERS = ("DVC_STAGE", "DIFFCTL_WORK", "RANK")  # whoever sets them has said what begins


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough of a project that no command is refused before it loads anything."""
    folder = tmp_path_factory.mktemp("project")
    write_params(folder, search={"fields": {"train.seed": [0, 1]}, "method": "grid"})
    (folder / "mlflow.db").touch()
    for name in ("a.npz", "b.npz"):
        np.savez(folder / name, arr_0=np.zeros((4, 8, 8, 1), np.uint8))
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> Said:
    """What each command line has said, on stdout and at the terminal, by the first heavy import."""
    lines: dict[str, tuple[list[str], dict[str, str]]]
    lines = {name: ([*name.split(), *arguments], {}) for name, arguments in LOADING.items()}
    for name in FOR_SCRIPTS:
        lines[f"{name} --json"] = ([*lines[name][0], "--json"], {})
    for teller in TELLERS:
        lines[teller] = (["stage", "data"], {teller: "1"})
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.first_word"],
        cwd=folder,
        env=environment({"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "", "PREFECT_API_URL": ""}),
        input=json.dumps(list(lines.values())),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return dict(zip(lines, json.loads(done.stdout), strict=True))


def test_every_command_is_known() -> None:
    assert EVERY.keys() == LOADING.keys() | OTHERS


@pytest.mark.parametrize("name", LOADING)
def test_something_is_said_before_anything_heavy_is_loaded(said: Said, name: str) -> None:
    told = said[name]
    assert told is not None, "it loads nothing heavy"
    assert "".join(told).count("\n") == 1
    assert name == "run" or told[0] == ""


@pytest.mark.parametrize("name", [*(f"{name} --json" for name in FOR_SCRIPTS), *TELLERS])
def test_a_script_or_who_has_said_it_hears_nothing(said: Said, name: str) -> None:
    assert said[name] == ["", ""]
