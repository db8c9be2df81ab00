"""The cells of a sweep: Prefect tasks where a server answers, else a loop."""

from pathlib import Path

import pytest

from diffusion.system.errors import DiffctlError, Interrupted, UsageError
from flows.prefect_server.client import environment
from flows.sweep_cells import CellTasks, run_cells
from tests.helpers.prefect_home import recorded, with_database
from tests.helpers.toy_project import script


def made_and_failing(made: list[str]) -> CellTasks:
    """Four cells: the second fails, the others append their names to `made`."""

    def fail() -> None:
        raise RuntimeError("out of memory")

    makers = {name: (lambda name=name: made.append(name)) for name in "abcd"}
    return CellTasks({**makers, "b": fail})


def test_a_failing_cell_leaves_the_others_alone_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    made: list[str] = []
    with pytest.raises(DiffctlError, match=r"1 of 4 cells failed: b \(RuntimeError: out of memory\)"):
        run_cells(made_and_failing(made))
    assert made == ["a", "c", "d"]


def test_without_a_reachable_server_the_cells_run_in_a_loop(capsys: pytest.CaptureFixture[str]) -> None:
    made: list[str] = []
    with environment({"PREFECT_API_URL": "http://127.0.0.1:1/api"}):
        run_cells(CellTasks({name: (lambda name=name: made.append(name)) for name in "ab"}))
    assert made == ["a", "b"]
    assert "no Prefect server answers" in capsys.readouterr().out


def test_only_usage_errors_make_the_sweep_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    def refuse() -> None:
        raise UsageError("eta is too large")

    with pytest.raises(UsageError):
        run_cells(CellTasks({"a": lambda: None, "b": refuse}))


def test_an_interrupted_cell_ends_the_sweep_and_stays_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    def stop() -> None:
        raise Interrupted("stopped", 2)

    cells = CellTasks({"a": lambda: None, "b": stop, "c": lambda: None})
    with pytest.raises(Interrupted):
        run_cells(cells)
    assert cells.left() == ["b", "c"]


ON_A_SERVER = """
import os, signal, sys
from flows.prefect_server.temporary_server import prefect_server
from flows.sweep_cells import CellTasks, run_cells
from diffusion.system.errors import DiffctlError, Interrupted

def server():
    import psutil
    name = "flows.prefect_server.temporary_server"
    return next(c for c in psutil.Process().children() if name in c.cmdline())

def fail(): raise RuntimeError("out of memory")
def lose(): server().kill()
def stop(): os.kill(os.getpid(), signal.SIGTERM)

makers = {"a": lambda: print("made a"), "b": BEHAVIOUR, "c": lambda: print("made c")}
code = 0
with prefect_server():
    try:
        run_cells(CellTasks(makers))
    except (DiffctlError, Interrupted) as error:
        print(error)
        code = error.exit_code
sys.exit(code)
"""


def on_a_server(folder: Path, behaviour: str) -> tuple[int, list[str]]:
    run = script(folder, ON_A_SERVER.replace("BEHAVIOUR", behaviour), {"PREFECT_API_URL": ""})
    output, _ = run.communicate(timeout=120)
    return run.returncode, output.splitlines()


@pytest.fixture
def folder(tmp_path: Path, prefect_database: Path) -> Path:
    with_database(tmp_path, prefect_database)
    return tmp_path


@pytest.mark.slow
def test_on_a_server_each_cell_is_a_task(folder: Path) -> None:
    code, lines = on_a_server(folder, "fail")
    assert code == 1
    assert [line for line in lines if line.startswith("made")] == ["made a", "made c"]
    assert len(lines) == 4
    assert recorded(folder) == {"sweep": "Failed", "a": "Completed", "b": "Failed", "c": "Completed"}


@pytest.mark.slow
def test_a_signal_in_a_cell_cancels_the_sweep(folder: Path) -> None:
    code, lines = on_a_server(folder, "stop")
    assert code == 143
    assert lines[0] == "made a"
    assert "stopped by SIGTERM" in lines[1]
    assert len(lines) == 2
    assert recorded(folder)["sweep"] == "Cancelled"


@pytest.mark.slow
def test_a_killed_server_loses_no_cell(folder: Path) -> None:
    code, lines = on_a_server(folder, "lose")
    assert code == 0
    assert lines[:2] == ["made a", "made c"]
    assert "continuing without it" in lines[2]
    assert len(lines) == 3
