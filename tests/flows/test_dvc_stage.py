"""Stages under real DVC: output, exit codes, signals, remotes, shared caches and outcomes."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import main
from cli.stages.used_inputs import InputsChanged
from diffusion.system.errors import DiffctlError, Interrupted, TemporaryError, UsageError
from diffusion.system.files import write_text
from diffusion.system.signals import make_interrupted
from flows.dvc_stage import StageFailed, child_environment, failure, needs_pull, reproduce
from flows.pipeline_run import run_step
from flows.stage_outcome import VARIABLE, StageOutcome, read_outcome
from tests.helpers.small import commit
from tests.helpers.toy_project import (
    be,
    processes_in,
    reproducing,
    script,
    toy_project,
    wait_for_file,
    wait_until_left,
)

FULL = "a cannot be written (Full): free some space"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return toy_project(tmp_path)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, env=child_environment())


def failing(stage: str, *, force: bool = False) -> DiffctlError | Interrupted:
    with pytest.raises((DiffctlError, Interrupted)) as caught:
        asyncio.run(reproduce(stage, force=force))
    return caught.value


@pytest.mark.slow
def test_a_stage_relays_its_output_and_writes_its_out(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(reproduce("data"))
    assert (toy / "prepared").read_text() == "data"
    shown = capsys.readouterr().out
    assert shown.startswith("==> data\n")
    assert shown.endswith("data at work\n")
    asyncio.run(reproduce("data"))
    assert capsys.readouterr().out == "==> data: up to date\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "exit_code", "retry", "message"),
    [
        ("fail(UsageError('data.name: no such data'))", 2, False, "data.name: no such data"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 1, True, "killed by signal 9 (out of memory?)"),
    ],
)
def test_a_failure_carries_the_message_of_the_stage_or_its_signal(toy, behaviour, exit_code, retry, message):
    be(toy, "data", behaviour)
    error = failing("data")
    assert isinstance(error, StageFailed)
    assert (error.exit_code, error.retry, str(error)) == (exit_code, retry, f"stage data: {message}")


@pytest.mark.parametrize(
    ("stage", "found", "exit_code", "retry", "words"),
    [
        ("data", StageOutcome("failed", "why", 1), 1, False, "stage data: why"),  # bad raw files stay bad
        ("train", StageOutcome("failed", "why", 1), 1, True, "stage train: why"),
        ("data", StageOutcome("temporary", "why", 75), 75, True, "why"),
        ("train", StageOutcome("refused", "why", 2), 2, False, "why"),
        ("data", StageOutcome("interrupted", "why", 143), 143, None, "why"),
        ("data", "failed to run: work.py, exited with 75", 1, False, "exit 75"),
        ("train", "failed to run: none, exited with 127", 1, True, "exit 127"),
        ("data", "failed to run: work.py, exited with 137", 1, True, "killed by signal 9"),
        ("data", "failed to run: work.py, exited with 143", 143, None, "was stopped"),
    ],
)
def test_outcome_or_last_line_of_dvc_decides_exit_code_and_retry(stage, found, exit_code, retry, words):
    outcome, lines = (found, []) if isinstance(found, StageOutcome) else (None, ["an earlier line", found])
    error = failure(stage, outcome, lines)
    assert isinstance(error, Interrupted) == (retry is None)
    assert (error.exit_code, getattr(error, "retry", None)) == (exit_code, retry)
    assert words in str(error)


def test_an_error_of_dvc_itself_is_reported(toy: Path) -> None:
    error = failing("train")
    assert isinstance(error, StageFailed)
    assert (error.exit_code, error.retry) == (1, False)
    assert "prepared" in str(error)


@pytest.mark.slow
def test_invalid_settings_of_dvc_are_a_usage_error(toy: Path) -> None:
    (toy / ".dvc/config").write_text("[core\n")
    with pytest.raises(UsageError, match=r"correct \.dvc/config"):
        asyncio.run(reproduce("data"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "whole_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_lets_the_stage_save_and_leaves_no_process(toy, number, whole_group) -> None:
    be(toy, "data", "train()")
    running = script(toy, reproducing("data"))
    wait_for_file(toy / "begun")
    (os.killpg if whole_group else os.kill)(running.pid, number)
    assert running.wait(30) == 128 + number
    assert (toy / "saved").read_text() == "SIGINT"
    assert not processes_in(toy)
    assert "stopping data" in running.communicate()[0]


@pytest.mark.slow
def test_a_closed_stdout_does_not_end_the_stage(toy: Path) -> None:
    be(toy, "data", "for i in range(5000): print('line', i)")
    running = script(toy, reproducing("data"))
    assert running.stdout is not None
    running.stdout.readline()
    running.stdout.close()
    assert running.wait(30) == 0
    assert (toy / "prepared").exists()


@pytest.mark.slow
def test_a_stage_that_ignores_signals_is_killed(toy: Path) -> None:
    be(toy, "data", "stubborn()")
    hasty = (
        "import signal\nfrom flows import dvc_stage\n"
        "dvc_stage.PATIENCE = [(n, 0.3) for n, _ in dvc_stage.PATIENCE[:2]] + [(9, 10)]"
    )
    running = script(toy, reproducing("data", before=hasty))
    wait_for_file(toy / "begun")
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 130
    assert not processes_in(toy)


def test_a_second_signal_ends_the_supervisor_while_the_stage_still_saves(toy: Path) -> None:
    be(toy, "data", "train(slow=True)")
    running = script(toy, reproducing("data"))
    wait_for_file(toy / "begun")
    running.send_signal(signal.SIGINT)
    assert running.stdout is not None
    while "stopping data" not in running.stdout.readline():
        pass
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == -signal.SIGINT
    (toy / "allow").touch()
    wait_until_left(toy)
    assert (toy / "saved").exists()


FETCHING = """
from diffusion.train.train_config import PretrainedConfig
from flows.dvc_pull import fetch_pretrained
def work(obj): fetch_pretrained(PretrainedConfig(sha256="5eed" * 16))
import cli.main
cli.main.app = work
try:
    cli.main.main()
except SystemExit as end:
    if end.code: raise
"""


@pytest.mark.long
def test_a_clone_pulls_outputs_and_the_initial_weights(toy, tmp_path_factory, monkeypatch, capsys):
    other = tmp_path_factory.mktemp("clones")
    start, content = Path("start/5eed5eed5eed5eed.safetensors"), "of another training"
    write_text(toy / start, content)
    run("dvc", "remote", "add", "--default", "here", str(other / "remote"))
    run("dvc", "add", str(start))
    for stage in ("data", "train"):
        asyncio.run(reproduce(stage))
    asyncio.run(run_step("push"))
    commit(toy, "made")
    run("git", "clone", "--quiet", str(toy), str(other / "clone"))
    monkeypatch.chdir(other / "clone")
    capsys.readouterr()
    for stage in ("data", "train"):
        asyncio.run(reproduce(stage))
    assert capsys.readouterr().out == "==> data: pulling its outputs\n==> train: pulling its outputs\n"
    assert (Path("prepared").read_text(), Path("model").read_text()) == ("data", "train")

    be(other / "clone", "train", FETCHING)
    assert not start.exists(), "the stage pulls it when it runs"
    (sent,) = (path for path in other.glob("remote/files/md5/*/*") if path.read_text() == content)
    sent.rename(other / "lost")
    error = failing("train", force=True)
    assert isinstance(error, StageFailed)
    assert error.retry, "the remote may return"
    assert "`dvc pull start/5eed" in str(error)
    (other / "lost").rename(sent)
    for _ in range(2):
        asyncio.run(reproduce("train", force=True))
        assert start.read_text() == content


@pytest.mark.slow
def test_a_remote_that_does_not_answer_stops_only_a_stage_that_needs_it(toy: Path) -> None:
    asyncio.run(reproduce("data"))
    run("dvc", "remote", "add", "--default", "away", "ssh://127.0.0.1:9/dvc")
    asyncio.run(reproduce("train"))
    assert (toy / "model").exists()
    (toy / "work.py").write_text((toy / "work.py").read_text() + "\n")
    asyncio.run(reproduce("data"))
    shutil.rmtree(toy / ".dvc/cache")
    assert not needs_pull("train"), "it runs with the changed work.py"
    (toy / "prepared").unlink()
    assert needs_pull("train")
    assert "127.0.0.1" in str(failing("data"))


@pytest.mark.slow
def test_a_concurrent_dvc_repro_is_refused_and_changes_nothing(toy: Path) -> None:
    be(toy, "data", "Path('begun').write_text('yes')\nwhile not Path('allow').exists(): time.sleep(0.01)")
    manual = 'import subprocess, sys\nsys.exit(subprocess.call(["dvc", "repro", "--single-item", "data"]))'
    first = script(toy, manual, child_environment())
    wait_for_file(toy / "begun")
    error = failing("data")
    assert isinstance(error, StageFailed)
    assert (error.exit_code, error.retry) == (75, True)
    assert "another DVC command is running in this folder (" in str(error)
    assert "(PID " in str(error)
    (toy / "allow").touch()
    assert first.wait(60) == 0
    assert (toy / "prepared").read_text() == "data"


def raising(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def interrupted() -> None:
    """Lose the exception of the signal, as a library may."""
    try:
        signal.raise_signal(signal.SIGTERM)
    except BaseException:
        raise KeyError from None


@pytest.mark.parametrize(
    ("work", "outcome"),
    [
        (raising(UsageError("wrong")), StageOutcome("refused", "wrong", 2)),
        (raising(TemporaryError("away")), StageOutcome("temporary", "away", 75)),
        (raising(InputsChanged("edited")), StageOutcome("refused", "edited", 75)),
        (raising(DiffctlError("it failed")), StageOutcome("failed", "it failed", 1)),
        (raising(OSError(28, "Full", "a")), StageOutcome("failed", FULL, 1)),
        (raising(KeyError("x")), StageOutcome("crashed", "KeyError: 'x'", 1)),
        (interrupted, StageOutcome("interrupted", str(make_interrupted(signal.SIGTERM)), 143)),
        (sys.exit, None),
    ],
)
def test_a_failure_is_written_and_its_path_is_not_inherited(tmp_path, monkeypatch, work, outcome) -> None:
    inherited: list[str | None] = []

    def app(obj: object) -> None:
        inherited.append(os.environ.get(VARIABLE))
        work()

    monkeypatch.setattr(main, "app", app)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "outcome.json"))
    with pytest.raises((SystemExit, KeyError)) as end:
        main.main()
    assert inherited == [None]
    assert read_outcome(tmp_path / "outcome.json") == outcome
    crashed = outcome is not None and outcome.kind == "crashed"
    assert isinstance(end.value, KeyError) == crashed
    assert crashed or end.value.code == (outcome.exit_code if outcome else 0)  # type: ignore[union-attr]
