"""A command prints what it does before it loads slow packages; with --json it prints nothing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_exit_codes import commands
from tests.conftest import environment, write_params
from tests.helpers.mlflow_server import free_port

ROOT = Path(__file__).parents[2]
Outputs = dict[str, list[str] | None]
MODEL = ["--model", "model.safetensors"]
PICTURE = ["--out", "a.png", *MODEL]
STAGES = ("data", "reference", "train", "sample", "evaluate", "report", "classifier")
LOADING = {  # with arguments that reach its first heavy import
    "ui": ["--port", str(free_port())],
    "use": ["--init-from", "model.safetensors"],
    "sample": PICTURE,
    "evaluate": ["a.npz", "--against", "b.npz"],
    "nll": PICTURE,
    "ema": ["--sigma-rel", "0.1"],
    "encode": ["0", *PICTURE],
    "interpolate": ["0", "1", *PICTURE],
    "import openai": ["a.pt", "--preset", "adm-64"],
    "import diffusers": ["a"],
    "export diffusers": ["b", *MODEL],
    "compare": ["a", "b"],
    **{f"show {figure}": [] for figure in ("forward", "steps", "variance", "reverse", "model", "samplers")},
    "promote": ["1"],
    "sweep": MODEL,
    "serve": MODEL,
    "playground": MODEL,
    **{name: [] for name in ("run", "check", "schema", "search", "runs", "rollback", "history", "prune")},
    **{f"stage {name}": [] for name in STAGES},
}
# These contact a server first, find nothing to do here, or run below another command.
OTHERS = {"up", "down", "status", "deploy", "emit data-changed", "sync", "seeds", "runs reap", "search-trial"}


FOR_SCRIPTS = ("check", "sample", "runs", "compare", "show steps", "history")
ANNOUNCED_BY = ("DVC_STAGE", "DIFFCTL_WORK", "RANK")  # set by a process that printed a message already


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    """What each command line printed to stdout and to the terminal before its first heavy import."""
    folder = tmp_path_factory.mktemp("project")
    write_params(folder, search={"fields": {"train.seed": [0, 1]}, "method": "grid"})
    (folder / "mlflow.db").touch()
    for name in ("a.npz", "b.npz"):
        np.savez(folder / name, arr_0=np.zeros((4, 8, 8, 1), np.uint8))
    lines: dict[str, tuple[list[str], dict[str, str]]]
    lines = {name: ([*name.split(), *arguments], {}) for name, arguments in LOADING.items()}
    lines |= {f"{name} --json": ([*lines[name][0], "--json"], {}) for name in FOR_SCRIPTS}
    lines |= {variable: (["stage", "data"], {variable: "1"}) for variable in ANNOUNCED_BY}
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.startup_message"],
        cwd=folder,
        env=environment({"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "", "PREFECT_API_URL": ""}),
        input=json.dumps(list(lines.values())),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return dict(zip(lines, json.loads(done.stdout), strict=True))


def test_table_contains_every_command() -> None:
    groups = {"runs"}  # which list the runs without a subcommand
    assert set(commands()) | groups == LOADING.keys() | OTHERS


@pytest.mark.parametrize("name", LOADING)
def test_message_precedes_heavy_imports(outputs: Outputs, name: str) -> None:
    output = outputs[name]
    assert output is not None, "it imports nothing heavy"
    assert "".join(output).count("\n") == 1
    assert name == "run" or output[0] == ""


@pytest.mark.parametrize("name", [*(f"{name} --json" for name in FOR_SCRIPTS), *ANNOUNCED_BY])
def test_no_message_for_scripts_or_below_an_announced_process(outputs: Outputs, name: str) -> None:
    assert outputs[name] == ["", ""]
