"""The pipeline on a toy graph with real DVC and Prefect: order, retries, signals, lost servers."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from diffusion.layout import FORCED, MODEL
from diffusion.model.model_file import read_artefact
from diffusion.sample.sampling_card import cells_folder
from diffusion.system.errors import Interrupted, UsageError
from diffusion.system.files import write_text
from flows import pipeline_run, registration
from flows.dvc_stage import StageFailed, is_unchanged
from flows.pipeline_run import run_pipeline, run_step, run_steps
from flows.stage_code import STAGES
from tests.conftest import ROOT, start_diffctl
from tests.helpers.networks import small_model
from tests.helpers.prefect_home import PrefectServer, recorded, with_database
from tests.helpers.toy_project import be, processes_in, script, toy_project, wait_for_file
from tests.helpers.training_process import DEADLINE
from tests.helpers.waiting import wait_until
from tracking.connectivity import MlflowDenied, MlflowError


def test_stages_are_in_an_order_that_dvc_yaml_allows() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    made: set[str] = set()
    for name in STAGES:
        data = stages[name].get("deps", [])
        assert all(any(dep == out or dep.startswith(f"{out}/") for out in made) for dep in data)
        made |= {
            next(iter(out)) if isinstance(out, dict) else out
            for key in ("outs", "plots", "metrics")
            for out in stages[name].get(key, [])
        }


def test_stages_that_the_user_added_run_in_their_place(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph = yaml.safe_load((toy_project(tmp_path) / "dvc.yaml").read_text())["stages"]
    graph["sample"]["deps"].append("classifier/weights")
    graph["export"] = {"foreach": ["a", "b"], "do": {"cmd": "true", "deps": ["page"], "outs": ["${item}"]}}
    graph["classifier"] = {"cmd": "true", "deps": ["prepared", "labels"], "outs": ["classifier"]}
    graph["labels"] = {"cmd": "true", "outs": ["labels"]}
    write_text(tmp_path / "dvc.yaml", yaml.safe_dump({"stages": graph}))
    ran = []

    async def do(name: str) -> None:
        ran.append(name)

    asyncio.run(run_steps(do, {}, push=True))
    before, (*middle, last) = ran[:3], ran[3:6]
    assert (before, sorted(middle), last) == (
        ["data", "reference", "train"],
        ["classifier", "labels"],
        "sample",
    )
    assert middle.index("labels") < middle.index("classifier")
    assert ran[6:] == ["evaluate", "report", "export@a", "export@b", "register", "push"]
    assert not is_unchanged()


@pytest.mark.slow
def test_each_step_runs_once_in_order() -> None:
    tried: list[str] = []

    async def do(name: str) -> str | None:
        tried.append(name)
        return "version 1" if name == "register" else None

    done: dict[str, str | None] = {"data": None, "reference": None}
    asyncio.run(run_steps(do, done, push=True, fresh=False))
    assert tried == ["train", "sample", "evaluate", "report", "register", "push"]
    assert done["register"] == "version 1"


def test_wrong_options_and_settings_are_refused_before_the_first_line(project, capsys) -> None:
    for push, fresh, keep in ((True, False, False), (False, True, True)):
        with pytest.raises(UsageError):
            run_pipeline(push=push, fresh=fresh, keep=keep)
    (project / "params.yaml").write_text("data: {}\n")
    with pytest.raises(UsageError, match=r"data\.name"):
        run_pipeline()
    assert capsys.readouterr().out == ""


def test_fresh_discards_shards_of_the_current_model_only(project: Path) -> None:
    async def do(name: str) -> None:
        assert name == "sample"

    def resample() -> None:
        others: dict[str, str | None] = {name: None for name in [*STAGES, "register"] if name != "sample"}
        asyncio.run(run_steps(do, others, push=False, fresh=True))

    resample()  # there is no model yet
    sha256 = read_artefact(small_model(MODEL)).model_sha256
    ours, other = cells_folder(sha256), cells_folder("0" * 64)
    for folder in (ours, other):
        write_text(folder / "card/00000000-00000004.npy", "images")
    resample()
    assert not ours.exists()
    assert other.exists()


@pytest.mark.parametrize(
    ("changed", "mismatch", "forced"),
    [(False, "", False), (True, "", False), (False, "train.lr.rate 0.002 → 0.5", False), (False, "", True)],
)
def test_a_run_without_work_starts_no_server(project, monkeypatch, changed, mismatch, forced) -> None:
    monkeypatch.setattr(pipeline_run, "is_unchanged", lambda: True)
    monkeypatch.setattr(pipeline_run, "raw_files_changed", lambda: changed)
    monkeypatch.setattr(pipeline_run, "model_mismatch", lambda: mismatch)
    monkeypatch.setattr(pipeline_run, "check_mlflow", lambda: None)
    monkeypatch.setattr(pipeline_run, "prefect_server", lambda: 1 / 0)
    monkeypatch.setattr(registration, "register_model", lambda: "version 1")
    if forced:
        write_text(FORCED, "train sample")
    if changed or mismatch or forced:
        with pytest.raises(ZeroDivisionError):
            run_pipeline()
    else:
        assert run_pipeline() == "version 1"


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (StageFailed("train", "failed", retry=True), True),
        (StageFailed("train", "refused", 2), False),
        (MlflowError("no answer"), True),
        (MlflowDenied("wrong password"), False),
        (Interrupted("stopped", signal.SIGINT), False),
        (ValueError("a bug"), False),
    ],
)
def test_only_transient_failures_are_retried(error: Exception, retried: bool) -> None:
    from prefect import task
    from prefect.client.schemas.objects import TaskRun
    from prefect.states import Failed

    from flows.pipeline import should_retry

    tried = task(lambda: None, name="train", retries=1, retry_delay_seconds=[1])
    run = TaskRun(task_key="train", dynamic_key="0", run_count=1)
    assert should_retry(tried, run, Failed(data=error)) is retried


NO_SERVER = {"PREFECT_API_URL": ""}


@pytest.fixture
def toy(tmp_path: Path, prefect_database: Path) -> Path:
    with_database(tmp_path, prefect_database)
    return toy_project(tmp_path)


@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_resumes(toy: Path) -> None:
    stop(toy, signal.SIGINT, os.killpg)
    again = stop(toy, signal.SIGTERM, os.kill)
    assert again.count("==> data: up to date") == again.count("train at work") == 1


def stop(toy: Path, number: signal.Signals, send: Callable[[int, int], None]) -> str:
    """Stop a run while it trains; return its output."""
    be(toy, "train", "train()")
    (toy / "begun").unlink(missing_ok=True)
    run = start_diffctl(toy, "run", env=NO_SERVER)
    wait_for_file(toy / "begun", seconds=120)
    send(run.pid, number)
    output, errors = run.communicate(timeout=180)
    assert run.returncode == 128 + number
    assert (toy / "saved").read_text() == "SIGINT"
    assert errors.startswith(f"diffctl: stopped by {number.name}")
    assert errors.count("\n") == 1
    assert not processes_in(toy)
    assert recorded(toy)["pipeline"] == "Cancelled"
    (toy / "saved").unlink()
    return output


@pytest.mark.slow
def test_a_run_after_an_interrupted_fresh_one_forces_the_same_stages(toy: Path, monkeypatch, capfd) -> None:
    """DVC's run cache has the old outputs."""

    def run(*stages: str, fresh: bool = False) -> list[str]:
        done: dict[str, str | None] = {name: None for name in [*STAGES, "register"] if name not in stages}
        with suppress(StageFailed):
            asyncio.run(run_steps(run_step, done, push=False, fresh=fresh))
        return [line for line in capfd.readouterr().out.splitlines() if line.endswith("at work")]

    monkeypatch.chdir(toy)
    monkeypatch.setattr(pipeline_run, "_prepare_training", lambda **_: None)
    assert len(run("data", "train", "sample")) == 3
    be(toy, "train", "fail(DiffctlError('stopped'))")
    assert run("train", "sample", fresh=True) == ["train at work"]
    assert not (toy / "model").exists()
    (toy / "be-train").unlink()
    assert run("train", "sample") == ["train at work", "sample at work"]
    assert not run("train", "sample")
    assert not (toy / FORCED).exists()


@pytest.mark.long
def test_the_run_survives_a_killed_prefect_server(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = (
        "import psutil\n"
        "for p in psutil.process_iter(['cmdline', 'cwd']):\n"
        "    server = 'flows.prefect_server.temporary_server' in (p.info['cmdline'] or ())\n"
        "    if server and p.info['cwd'] == os.getcwd(): p.kill()\n"
    )
    be(toy, "train", kill)
    run = start_diffctl(toy, "run", env=NO_SERVER)
    output, errors = run.communicate(timeout=180)
    assert (toy / "page").exists()
    assert output.count("report at work") == 1
    assert "continuing without it" in errors
    assert "Traceback" not in output + errors
    assert not processes_in(toy)
    monkeypatch.chdir(toy)
    assert is_unchanged()
    (toy / "page").unlink()
    assert not is_unchanged()


@pytest.fixture
def prefect(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A server of the user's own, in another folder."""
    server = PrefectServer(tmp_path_factory.mktemp("server"))
    with_database(server.folder, prefect_database)
    yield server.start()
    server.kill()


RETRYING = """
import asyncio
from flows.prefect_server.temporary_server import prefect_server
with prefect_server():
    from flows.pipeline import pipeline
    asyncio.run(pipeline(retry_delays=[0.1, 0.1], return_state=True))
"""


@pytest.mark.slow
def test_failed_steps_are_retried_and_refused_ones_are_not(toy: Path, prefect: PrefectServer) -> None:
    """On the server at PREFECT_API_URL."""
    (toy / "count").write_text("0")
    counting = "n = int(Path('count').read_text()) + 1\nPath('count').write_text(str(n))\n"
    be(toy, "reference", f"{counting}if n <= 2: fail(DiffctlError('it diverged'))\n")
    be(toy, "train", "fail(UsageError('train.lr must be above 0'))")
    output, _ = script(toy, RETRYING, {"PREFECT_API_URL": prefect.url}).communicate(timeout=180)
    assert [output.count(f"{stage} at work") for stage in ("reference", "train", "sample")] == [3, 1, 0]
    assert "stage reference: it diverged; trying again in 0.1 s (1 of 2)" in output
    # The server receives the events of tasks some time after the tasks ended.
    states = {"reference": "Completed", "train": "Failed", "pipeline": "Failed"}
    wait_until(lambda: states.items() <= recorded(prefect.folder).items())
    assert "sample" not in recorded(prefect.folder)
    assert "pipeline" not in recorded(toy)
    assert not processes_in(toy)


WAIT = """
Path("begun-STAGE").write_text("yes")
while not Path("go-STAGE").exists():
    time.sleep(0.02)
"""


@pytest.mark.long
def test_run_survives_three_outages_of_prefect(toy: Path, prefect: PrefectServer) -> None:
    """Kill and restart, hang and resume, then kill for good: every stage runs once."""
    for stage in ("data", "train", "sample"):
        be(toy, stage, WAIT.replace("STAGE", stage))
    env = {"PREFECT_API_URL": prefect.url, "PREFECT_CLIENT_MAX_RETRIES": "4"}
    run = start_diffctl(toy, "run", env=env)

    wait_for_file(toy / "begun-data", DEADLINE)
    prefect.kill()
    (toy / "go-data").touch()
    wait_until(lambda: (toy / "dvc.lock").exists(), DEADLINE)
    prefect.start()

    wait_for_file(toy / "begun-train", DEADLINE)
    prefect.signal(signal.SIGSTOP)
    (toy / "go-train").touch()
    wait_until(lambda: "train:" in (toy / "dvc.lock").read_text(), DEADLINE)
    prefect.signal(signal.SIGCONT)

    wait_for_file(toy / "begun-sample", DEADLINE)
    complete = {("data", "Completed"), ("train", "Completed")}
    wait_until(lambda: complete <= recorded(prefect.folder).items(), DEADLINE)
    prefect.kill()
    (toy / "go-sample").touch()
    output, errors = run.communicate(timeout=180)
    assert (toy / "page").exists()
    for stage in ("data", "train", "sample", "evaluate", "report"):
        assert output.count(f"{stage} at work") == 1
    assert f"the Prefect server at {prefect.url} failed" in errors
    assert "continuing without it" in errors
    assert "Traceback" not in output + errors
    assert not processes_in(toy)
