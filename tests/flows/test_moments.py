"""`diffctl run` stopped at many moments: it ends by the signal, leaves nothing, and resumes.

A moment is a count of events (imports, opened and renamed files, connections) of the run or of a stage."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flows.stage_code import STAGES
from tests.conftest import ROOT, run_python
from tests.helpers.prefect_home import recorded, with_database
from tests.helpers.small import commit, own_code, small_project
from tests.helpers.toy_project import processes_in
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.long

INT, TERM, TWICE = f"{signal.SIGINT:d}", f"{signal.SIGTERM:d}", f"{signal.SIGINT:d}:{signal.SIGINT:d}"
# Of the run itself while it starts, of each stage, and of the run when only the registration is left.
STARTING = [("import", part, INT) for part in (0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35)]
STARTING += [("import", 0.12, TERM), ("import", 0.28, TWICE), ("open", 0.1, INT), ("open", 0.2, TERM)]
STAGE = [("import", 0.01, INT), ("import", 0.5, TWICE), ("open", 0.5, TERM), ("os.rename", 0.0, INT)]
REGISTERING = [("import", part, INT) for part in (0.65, 0.75, 0.85, 0.95)] + [("import", 0.9, TERM)]
MOMENTS = [("run", *moment) for moment in STARTING]
MOMENTS += [(f"stage {stage}", *moment) for stage in STAGES for moment in STAGE]
MOMENTS += [("run", *moment) for moment in REGISTERING]


def project(folder: Path, database: Path) -> Path:
    """A small project, each of whose stages counts its events."""
    small_project(folder)
    graph = (folder / "dvc.yaml").read_text()
    counting = f"cmd: {sys.executable} -m tests.helpers.stop_at_event stage"
    (folder / "dvc.yaml").write_text(graph.replace("cmd: diffctl stage", counting))
    commit(folder, "count")
    with_database(folder, database)
    return folder


def run(folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run the pipeline in the folder, with its temporary files in `tmp`."""
    (folder / "tmp").mkdir(exist_ok=True)
    env = own_code(folder) | {"PYTHONPATH": f"{folder}:{ROOT}", "TMPDIR": str(folder / "tmp")}
    return run_python(folder, "-m", "tests.helpers.stop_at_event", "run", env=env | variables)


def champions(folder: Path) -> int:
    """How many models are champion in the folder's MLflow."""
    if not (folder / "mlflow.db").exists():
        return 0
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return int(database.execute("SELECT count(*) FROM registered_model_aliases").fetchone()[0])


def half_written(folder: Path) -> list[Path]:
    """Files that were to get a name and did not."""
    return [path for path in folder.rglob("*.tmp") if not {".dvc", ".git", ".prefect"} & set(path.parts)]


def test_a_run_stopped_at_any_moment_ends_by_the_signal(tmp_path: Path, prefect_database: Path) -> None:
    counts = tmp_path / "counts"
    counts.mkdir()
    assert run(project(tmp_path / "whole", prefect_database), COUNTS=str(counts)).returncode == 0
    shutil.rmtree(tmp_path / "whole")
    folder = project(tmp_path / "stopped", prefect_database)
    assert len(MOMENTS) > 40
    for process, event, part, signals in MOMENTS:
        number = max(1, int(part * json.loads((counts / f"{process}.json").read_text())[event]))
        moment = f"{process}:{event}:{number}:{signals}"
        done = run(folder, MOMENT=moment)
        first = int(signals.partition(":")[0])
        twice = signals == TWICE
        assert done.returncode in (128 + first, *([-first] if twice else [])), (moment, done)
        assert "Traceback" not in done.stdout + done.stderr, (moment, done)
        assert done.stderr.startswith("diffctl: stopped by") or (number < 300 and not done.stderr) or twice
        wait_until(lambda: not processes_in(folder), 90)
        assert champions(folder) == 0, moment
        assert recorded(folder).get("pipeline") != "Completed", moment
        assert twice or list((folder / "tmp").iterdir()) == [], moment
        assert half_written(folder) == [], moment
    whole = run(folder)
    assert whole.returncode == 0, whole
    assert champions(folder) == 1
    assert half_written(folder) == []
