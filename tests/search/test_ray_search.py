"""`diffctl search --ray` on a real Ray: killed drivers, workers and nodes."""

import json
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from diffusion.system.locks import is_held
from tests.conftest import diffctl, start_diffctl
from tests.helpers.training_process import states
from tests.helpers.waiting import wait_until
from tests.search.conftest import trials

pytest.importorskip("ray")
pytestmark = pytest.mark.long

ALONE = {"RAY_ADDRESS": ""}


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return start_diffctl(folder, "search", "--ray", *arguments, env=ALONE)


def trial_processes(folder: Path) -> list[psutil.Process]:
    """The processes of trials of this project."""
    running = psutil.process_iter(["cmdline", "cwd"])
    ours = [process for process in running if process.info["cwd"] == str(folder)]
    return [process for process in ours if "search-trial" in (process.info["cmdline"] or ())]


def wait_for_two(folder: Path, process: "subprocess.Popen[str]") -> None:
    """Wait until two trainings have saved a state after their first step."""

    def both() -> bool:
        assert process.poll() is None, process.communicate()
        later = {path.parent for path in states(folder) if int(path.stem.rpartition("-")[2]) > 0}
        return len(later) >= 2 and len(trial_processes(folder)) == 2

    wait_until(both, 180)


def test_killed_driver_and_worker_give_the_same_table(searching) -> None:
    sequential = diffctl(searching, "search", "--json")
    assert sequential.returncode == 0, sequential.stderr
    (searching / "runs").rename(searching / "runs-sequential")
    process = start(searching)
    wait_for_two(searching, process)
    process.kill()
    process.communicate()
    wait_until(lambda: not trial_processes(searching))  # the trials end with their search
    assert [trial.state for trial in trials(searching)] == ["running", "running"]

    process = start(searching, "--json")
    wait_until(lambda: len(trial_processes(searching)) == 2, 180)
    psutil.Process(trial_processes(searching)[0].ppid()).kill()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert found == json.loads(sequential.stdout)
    assert [trial["state"] for trial in found["trials"]] == ["done"] * 2
    logs = [path.read_text() for path in searching.glob("runs/search/search/trials/*/trial.log")]
    assert ["resuming after step" in log for log in logs] == [True] * 2
    for number in range(2):
        ours, theirs = (
            searching / runs / f"search/search/trials/{number:05d}/model.safetensors"
            for runs in ("runs", "runs-sequential")
        )
        assert ours.read_bytes() == theirs.read_bytes()
    assert not any((searching / name).exists() for name in ("samples", "metrics", "models/model.safetensors"))


def test_ctrl_c_saves_all_trials(searching: Path) -> None:
    process = start(searching)
    wait_for_two(searching, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not trial_processes(searching)
    assert not any(is_held(lock) for lock in searching.glob("runs/train/*/lock"))
    assert [trial.state for trial in trials(searching)] == ["running", "running"]


def test_missing_resources_are_refused(searching: Path) -> None:
    for arguments, word in ((("--ray", "--cpus", "4000"), "4000"), (("--max-parallel", "2"), "--ray")):
        done = diffctl(searching, "search", *arguments, env=ALONE)
        assert (done.returncode, word in done.stderr) == (2, True), done.stderr
