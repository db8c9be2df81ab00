"""Hooks of the flows."""

from pathlib import Path

from tests.helpers.toy_project import script
from tests.helpers.waiting import wait_until

LOGGING = """
import time
from pathlib import Path
import flows.flow_hooks
from prefect.logging import get_logger
while not Path("go").exists():
    time.sleep(0.01)
for number in range(3):
    get_logger("work").info("line %d", number)
Path("done").write_text("yes")
"""


def test_a_run_finishes_after_its_worker_has_died(tmp_path: Path) -> None:
    """The worker reads the pipe to which the run logs."""
    settings = {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": "", "PREFECT_LOGGING_LEVEL": "INFO"}
    run = script(tmp_path, LOGGING, settings)
    assert run.stdout is not None
    run.stdout.close()
    (tmp_path / "go").touch()
    wait_until(lambda: run.poll() is not None, 60)
    assert (tmp_path / "done").exists()
    assert run.returncode == 0
