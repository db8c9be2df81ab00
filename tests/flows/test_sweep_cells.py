"""The cells of a sweep: Prefect tasks where a server answers, else a loop."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from diffusion.sample.sampler import NonFiniteError
from diffusion.system.errors import DiffctlError, Interrupted, UsageError
from diffusion.system.files import write_text
from flows.run_lock import environment
from flows.sweep_cells import CellTasks, run_cells
from tests.helpers.prefect_home import recorded, with_database
from tests.helpers.toy_project import script


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def appending(made: list[str], names: str) -> dict[str, Callable[[], object]]:
    """Return cells that append their names."""
    return {name: (lambda name=name: made.append(name)) for name in names}


@pytest.mark.parametrize(
    ("error", "kind", "named"),
    [
        (RuntimeError("out"), DiffctlError, "RuntimeError: out"),
        (UsageError("eta"), UsageError, "eta"),
        (NonFiniteError("step 3 has NaN"), NonFiniteError, "step 3 has NaN"),
    ],
)
def test_a_failing_cell_leaves_the_others_alone_and_is_named(error, kind, named) -> None:
    def fail() -> None:
        raise error

    made: list[str] = []
    with pytest.raises(DiffctlError, match=rf"1 of 4 cells failed: b \({named}\)") as caught:
        run_cells(CellTasks({**appending(made, "abcd"), "b": fail}))
    assert (made, type(caught.value)) == (["a", "c", "d"], kind)


def test_cells_that_cannot_be_written_are_named_with_one_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cells = {name: lambda: write_text(tmp_path / "file" / "images", "") for name in "abc"}
    with pytest.raises(DiffctlError) as caught:
        run_cells(CellTasks(cells))
    assert str(caught.value).startswith("3 of 3 cells failed: a, b, c (cannot write its images (")
    assert str(caught.value).count("cannot write") == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/api", "http://[::1/api"])
def test_without_a_reachable_server_the_cells_run_in_a_loop(url: str, capsys) -> None:
    made: list[str] = []
    with environment({"PREFECT_API_URL": url}):
        run_cells(CellTasks(appending(made, "ab")))
    printed = capsys.readouterr()
    assert (made, printed.out) == (["a", "b"], ""), "such as JSON"
    assert "no Prefect server answers" in printed.err


def test_an_interrupted_cell_ends_the_sweep_and_stays_pending() -> None:
    def stop() -> None:
        raise Interrupted("stopped", 2)

    cells = CellTasks({"a": lambda: None, "b": stop, "c": lambda: None})
    with pytest.raises(Interrupted):
        run_cells(cells)
    assert cells.left() == ["b", "c"]


ON_A_SERVER = """
import os, signal
import psutil
from flows.prefect_server.temporary_server import prefect_server
from flows.sweep_cells import CellTasks, run_cells
from diffusion.system.errors import DiffctlError, Interrupted

def fail(): raise RuntimeError("out of memory")
def stop(): os.kill(os.getpid(), signal.SIGTERM)
def lose():
    name = "flows.prefect_server.temporary_server"
    next(child for child in psutil.Process().children() if name in child.cmdline()).kill()

with prefect_server():
    for behave in (fail, stop, lose):
        a, b, c = (f"{behave.__name__} {cell}" for cell in "abc")
        try:
            run_cells(CellTasks({a: lambda: print("made a"), b: behave, c: lambda: print("made c")}))
        except (DiffctlError, Interrupted) as error:
            print(f"exit {error.exit_code}: {error}")
        print("end")
assert os.environ["PREFECT_API_URL"] == "", "as before"
"""


@pytest.mark.long
def test_on_a_server_each_cell_is_a_task_and_failures_lose_no_other_cell(tmp_path, prefect_database) -> None:
    with_database(tmp_path, prefect_database)
    run = script(tmp_path, ON_A_SERVER, {"PREFECT_API_URL": "", "PYTHONUNBUFFERED": "1"})
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 0, output
    failed, stopped, lost, _ = (part.strip().splitlines() for part in output.split("end\n"))
    assert [failed[0], failed[2], failed[3][:7]] == ["made a", "made c", "exit 1:"]
    assert len(failed) == 4
    states = recorded(tmp_path)
    assert [states[f"fail {cell}"] for cell in "abc"] == ["Completed", "Failed", "Completed"]
    assert stopped[0] == "made a"
    assert stopped[1].startswith("exit 143: stopped by SIGTERM")
    assert len(stopped) == 2
    assert lost[:2] == ["made a", "made c"]
    assert "continuing without it" in lost[2]
    assert len(lost) == 3
    with closing(sqlite3.connect(tmp_path / ".prefect/prefect.db")) as database:
        sweeps = database.execute("SELECT state_name FROM flow_run ORDER BY created").fetchall()
    assert sweeps[:2] == [("Failed",), ("Cancelled",)]
