"""The pipeline on a toy graph with real DVC and Prefect: order, retries, signals, lost servers."""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from diffusion.layout import MODEL
from diffusion.model.model_file import save_artefact
from diffusion.sample.shards import cells_folder
from diffusion.system.errors import DiffctlError, Interrupted, UsageError
from diffusion.system.files import write_text
from flows.dvc_stage import STAGES, StageFailed, is_unchanged
from flows.pipeline_steps import check_options, run_steps
from tests.closure import GRAPH
from tests.conftest import command, environment
from tests.flows.test_temporary_server import HOLD
from tests.helpers.networks import artefact_of, network_of, spec_of
from tests.helpers.prefect_home import recorded, with_database
from tests.helpers.toy_project import be, processes_in, script, toy_project, wait_for_file
from tracking.connectivity import MlflowDenied, MlflowError


def test_stages_are_in_an_order_that_dvc_yaml_allows() -> None:
    stages = yaml.safe_load(GRAPH.read_text())["stages"]
    assert sorted(stages) == sorted(STAGES)
    made: set[str] = set()
    for name in STAGES:
        data = {dep for dep in stages[name]["deps"] if not dep.startswith(("diffusion/", "plugins/"))}
        assert all(any(dep == out or dep.startswith(f"{out}/") for out in made) for dep in data)
        made |= {
            next(iter(out)) if isinstance(out, dict) else out
            for key in ("outs", "plots", "metrics")
            for out in stages[name].get(key, [])
        }


def test_each_step_runs_once_in_order() -> None:
    tried: list[tuple[str, bool]] = []

    async def do(name: str, fresh: bool) -> str | None:
        tried.append((name, fresh))
        return "version 1" if name == "register" else None

    done: dict[str, str | None] = {"data": None, "reference": None}
    asyncio.run(run_steps(do, done, push=True, fresh=False))
    assert [name for name, _ in tried] == ["train", "sample", "evaluate", "report", "register", "push"]
    assert done["register"] == "version 1"


def test_contradicting_options_are_refused_before_any_step(project: Path) -> None:
    for options in (
        {"push": True, "fresh": False, "keep": False},
        {"push": False, "fresh": True, "keep": True},
    ):
        with pytest.raises(UsageError):
            check_options(**options)


def test_fresh_discards_shards_of_the_current_model_only(project: Path) -> None:
    async def do(name: str, fresh: bool) -> None:
        assert (name, fresh) == ("sample", True)

    def resample() -> None:
        others: dict[str, str | None] = {name: None for name in [*STAGES, "register"] if name != "sample"}
        asyncio.run(run_steps(do, others, push=False, fresh=True))

    resample()  # there is no model yet
    spec = spec_of()
    model = save_artefact(MODEL, network_of(spec).state_dict(), artefact_of(spec))
    ours, other = cells_folder(model.model_sha256), cells_folder("0" * 64)
    for folder in (ours, other):
        write_text(folder / "card/00000000-00000004.npy", "images")
    resample()
    assert not ours.exists()
    assert other.exists()


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (StageFailed("train", "failed", retry=True), True),
        (StageFailed("train", "refused", 2), False),
        (MlflowError("no answer"), True),
        (MlflowDenied("wrong password"), False),
        (Interrupted("stopped", signal.SIGINT), False),
        (DiffctlError("failed"), False),
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


@pytest.fixture
def toy(tmp_path: Path, prefect_database: Path) -> Path:
    with_database(tmp_path, prefect_database)
    return toy_project(tmp_path)


def started(
    folder: Path, *arguments: str, url: str = "", env: dict[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start `diffctl run` in the folder, in its own session."""
    return subprocess.Popen(
        command("run", *arguments),
        cwd=folder,
        env=environment({"PREFECT_API_URL": url, **(env or {})}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_usage_error_ends_the_run_without_retry(toy: Path) -> None:
    be(toy, "train", "fail(UsageError('train.lr must be above 0'))")
    run = started(toy)
    output, errors = run.communicate(timeout=120)
    assert run.returncode == 2
    assert output.count("train at work") == 1
    assert errors == "diffctl: stage train: train.lr must be above 0\n"
    states = recorded(toy)
    assert (states["data"], states["train"], states["pipeline"]) == ("Completed", "Failed", "Failed")
    assert "sample" not in states
    assert not processes_in(toy)


RETRYING = """
import asyncio
from flows.prefect_server.temporary_server import prefect_server
with prefect_server():
    from flows.pipeline import pipeline
    asyncio.run(pipeline(retry_delays=[0.1, 0.1], return_state=True))
"""


@pytest.mark.slow
def test_a_failed_step_is_retried_up_to_the_given_delays(toy: Path) -> None:
    (toy / "count").write_text("0")
    be(
        toy,
        "train",
        "n = int(Path('count').read_text()) + 1\nPath('count').write_text(str(n))\n"
        "if n <= 2: fail(DiffctlError('it diverged'))\n",
    )
    output, _ = script(toy, RETRYING, {"PREFECT_API_URL": ""}).communicate(timeout=180)
    assert output.count("train at work") == 3
    assert "stage train: it diverged; trying again in 0.1 s (1 of 2)" in output
    assert recorded(toy)["train"] == "Completed"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "whole_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_saves_and_the_same_command_resumes(
    toy: Path, number: signal.Signals, whole_group: bool
) -> None:
    be(toy, "train", "train()")
    run = started(toy)
    wait_for_file(toy / "begun", seconds=120)
    (os.killpg if whole_group else os.kill)(run.pid, number)
    _, errors = run.communicate(timeout=180)
    assert run.returncode == 128 + number
    assert (toy / "saved").exists()
    assert errors.startswith(f"diffctl: stopped by {number.name}")
    assert len(errors.splitlines()) == 1
    assert not processes_in(toy)
    states = recorded(toy)
    assert (states["data"], states["pipeline"]) == ("Completed", "Cancelled")

    (toy / "be-train").unlink()
    output, _ = started(toy).communicate(timeout=120)
    assert "==> data: up to date" in output
    assert "train at work" in output


@pytest.mark.slow
def test_the_run_survives_a_killed_prefect_server(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = (
        "import psutil\n"
        "for p in psutil.process_iter(['cmdline', 'cwd']):\n"
        "    server = 'flows.prefect_server.temporary_server' in (p.info['cmdline'] or ())\n"
        "    if server and p.info['cwd'] == os.getcwd(): p.kill()\n"
    )
    be(toy, "train", kill)
    run = started(toy)
    output, errors = run.communicate(timeout=180)
    assert (toy / "page").exists()
    assert output.count("report at work") == 1
    assert "continuing without it" in output
    assert "Traceback" not in output + errors
    assert not processes_in(toy)
    monkeypatch.chdir(toy)
    assert is_unchanged()
    (toy / "page").unlink()
    assert not is_unchanged()


@pytest.mark.slow
def test_prefect_api_url_selects_the_server(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("server")
    with_database(other, toy / ".prefect")
    server = script(other, HOLD, {"PREFECT_API_URL": ""})
    wait_for_file(other / "url")
    be(toy, "train", "fail(UsageError('train.lr must be above 0'))")
    run = started(toy, url=(other / "url").read_text())
    run.communicate(timeout=120)
    (other / "enough").touch()
    server.communicate(timeout=30)
    assert run.returncode == 2
    assert recorded(other)["pipeline"] == "Failed"
    assert "pipeline" not in recorded(toy)
