"""Outages of the Prefect server during a run: every stage runs once."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.test_pipeline import started
from tests.helpers.prefect_home import PrefectServer, recorded, with_database
from tests.helpers.toy_project import be, processes_in, toy_project, wait_for_file
from tests.helpers.training_process import DEADLINE
from tests.helpers.waiting import wait_until


@pytest.fixture
def prefect(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    folder = tmp_path_factory.mktemp("server")
    with_database(folder, prefect_database)
    server = PrefectServer(folder)
    yield server
    server.kill()


WAIT = """
Path("begun-STAGE").write_text("yes")
while not Path("go-STAGE").exists():
    time.sleep(0.02)
"""


@pytest.mark.long
def test_run_survives_three_outages_of_prefect(tmp_path: Path, prefect: PrefectServer) -> None:
    """Kill and restart, hang and resume, then kill for good: every stage runs once."""
    folder = toy_project(tmp_path)
    for stage in ("data", "train", "sample"):
        be(folder, stage, WAIT.replace("STAGE", stage))
    prefect.start()
    run = started(folder, url=prefect.url, env={"PREFECT_CLIENT_MAX_RETRIES": "4"})

    wait_for_file(folder / "begun-data", DEADLINE)
    prefect.kill()
    (folder / "go-data").touch()
    wait_until(lambda: (folder / "dvc.lock").exists(), DEADLINE)
    prefect.start()

    wait_for_file(folder / "begun-train", DEADLINE)
    prefect.signal(signal.SIGSTOP)
    (folder / "go-train").touch()
    wait_until(lambda: "train:" in (folder / "dvc.lock").read_text(), DEADLINE)
    prefect.signal(signal.SIGCONT)

    wait_for_file(folder / "begun-sample", DEADLINE)
    # The server receives the events of tasks some time after the tasks ended.
    complete = {("data", "Completed"), ("train", "Completed")}
    wait_until(lambda: complete <= recorded(prefect.folder).items(), DEADLINE)
    prefect.kill()
    (folder / "go-sample").touch()
    output, errors = run.communicate(timeout=180)
    assert (folder / "page").exists()
    for stage in ("data", "train", "sample", "evaluate", "report"):
        assert output.count(f"{stage} at work") == 1
    assert f"the Prefect server at {prefect.url} failed" in output
    assert "continuing without it" in output
    assert "Traceback" not in output + errors
    assert not processes_in(folder)
