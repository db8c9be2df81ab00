"""Deployments: the clone of scheduled runs, prefect.yaml, and runs on a real Prefect server and worker."""

import json
import os
import re
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import yaml

from cli.actions.registry.tracked_runs import NOTHING
from diffusion.layout import MARK
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.locks import LockBusy, holding_group
from flows import clone
from flows.prefect_server.deployments import (
    AUTOMATIONS,
    FILE,
    TAG,
    _check_owner,
    owner_tag,
    read_automations,
    read_plan,
)
from flows.run_lock import FLOW_RUN, LOCK, VARIABLE, hold_run_lock, join_run
from tests.conftest import ROOT, diffctl, run_python, start_python, write_params
from tests.helpers.nightly import Nightly, nightly, post
from tests.helpers.small import commit, git
from tests.helpers.toy_project import processes_in, script
from tests.helpers.waiting import wait_until

NAMES = ("retrain", "sweep", "evaluate")
LEFT = "what the last run has left\n"


@pytest.fixture
def cloned(tmp_path: Path) -> Path:
    """A folder with a repository `origin` and its clone `nightly`, which a run has left changed."""
    origin = tmp_path / "origin"
    (origin / "flows").mkdir(parents=True)
    (origin / "flows/__init__.py").touch()
    (origin / ".gitignore").write_text("/runs/\n")
    (origin / "dvc.yaml").write_text("stages: {}\n")
    (origin / "dvc.lock").write_text("as committed\n")
    git(origin, "init", "--quiet")
    commit(origin, "begin")
    git(tmp_path, "clone", "--quiet", str(origin), "nightly")
    (tmp_path / "nightly/dvc.lock").write_text(LEFT)
    return tmp_path


def test_update_clone_fast_forwards_to_upstream(cloned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cloned)
    origin, nightly = cloned / "origin", cloned / "nightly"
    made, unrelated = Path("metrics/scores.json"), Path("notes.txt")
    for folder in (nightly, origin):
        (folder / made).parent.mkdir()
        (folder / made).write_text(f"made in {folder.name}\n")
    (nightly / unrelated).write_text("made in nightly\n")
    (origin / "params.yaml").write_text("newer\n")
    commit(origin, "go on")

    monkeypatch.setenv(clone.VARIABLE, str(nightly))
    monkeypatch.setattr(clone.flows, "__file__", str(nightly / "flows/__init__.py"))
    assert clone.update_clone() == {"directory": str(nightly)}
    assert Path.cwd() == nightly
    assert (nightly / "dvc.lock").read_text() == "as committed\n"
    assert (nightly / "params.yaml").read_text() == "newer\n"
    assert (nightly / made).read_text() == "made in origin\n"
    assert (nightly / unrelated).read_text() == "made in nightly\n"

    git(nightly, "commit", "--quiet", "--allow-empty", "--message", "of the clone alone")
    (origin / "params.yaml").write_text("newest\n")
    commit(origin, "go on again")
    clone._held.close()
    with pytest.raises(DiffctlError, match="commits that its upstream lacks"):
        clone.update_clone()
    clone._held.close()


def test_update_clone_requires_a_clone_that_runs_its_own_code(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(clone.VARIABLE, raising=False)
    with pytest.raises(UsageError, match="must name a clone"):
        clone.update_clone()
    (tmp_path / "flows").mkdir()
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.setenv(clone.VARIABLE, str(tmp_path))
    assert clone._named_clone() == tmp_path, "a project may have a folder of this name"
    (tmp_path / "flows/clone.py").touch()
    with pytest.raises(UsageError, match="start the worker from"):
        clone.update_clone()


LOSING = """
import prefect.main
from prefect._internal.concurrency.services import QueueService

class Events(QueueService):
    async def _handle(self, item):
        raise OSError("the server is away")

Events.instance().send("an event")
Events.drain_all()
"""


@pytest.mark.slow
def test_scheduled_runs_log_no_event_that_prefect_cannot_send(tmp_path: Path) -> None:
    """Prefect logs each one that it loses as an internal error, with its whole text."""
    work_pool = read_plan(ROOT / FILE)["deployments"][0]["work_pool"]
    home = {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    assert "an event" in run_python(tmp_path, "-c", LOSING, env=home).stderr
    done = run_python(tmp_path, "-c", LOSING, env=home | work_pool["job_variables"]["env"])
    assert done.returncode == 0
    assert "an event" not in done.stderr


UPDATE = """
from pathlib import Path
import flows.clone
flows.clone.flows.__file__ = str(Path("nightly/flows/__init__.py").resolve())
flows.clone.update_clone(wait={wait})
"""


def updating(cloned: Path, wait: float) -> "subprocess.Popen[str]":
    return script(cloned, UPDATE.format(wait=wait), {clone.VARIABLE: str(cloned / "nightly"), VARIABLE: ""})


def test_a_busy_clone_is_waited_for_and_not_touched(cloned: Path) -> None:
    with hold_run_lock(cloned / "nightly"):
        late = updating(cloned, wait=0.3)
        output, _ = late.communicate(timeout=60)
        assert late.returncode == 0
        assert f"is running in {cloned / 'nightly'} (process {os.getpid()}," in output
        assert "skipped: another run, or a stage that outlived it, is running" in output
        assert (cloned / "nightly/dvc.lock").read_text() == LEFT
        late = updating(cloned, wait=60)
        assert late.stdout is not None
        assert "waiting for it" in late.stdout.readline()
    assert late.wait(60) == 0
    assert (cloned / "nightly/dvc.lock").read_text() == "as committed\n"


PULL_STEP = """
import os, sys
from pathlib import Path
from flows.run_lock import VARIABLE, hold_run_lock
lock = hold_run_lock(Path(), through_exec=True)
lock.__enter__()
del os.environ[VARIABLE]  # Prefect starts its engine with other variables
wait = "print(1, flush=True), time.sleep(600)"
engine = f"import time\\nfrom flows.run_lock import hold_run_lock\\nwith hold_run_lock(): {wait}"
os.execv(sys.executable, [sys.executable, "-c", engine])
"""


def test_a_retry_of_a_flow_run_waits_for_its_earlier_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv(FLOW_RUN, "a-flow-run")
    earlier = start_python(tmp_path, "-c", PULL_STEP)
    assert earlier.stdout is not None
    assert earlier.stdout.readline() == "1\n", "the engine shares the lock of its pull step"
    with pytest.raises(LockBusy, match="a-flow-run"), hold_run_lock(tmp_path):
        raise AssertionError("the earlier process is at work")
    earlier.kill()
    earlier.communicate()
    with hold_run_lock(tmp_path):
        pass


def test_a_stage_holds_the_lock_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with join_run():
        assert holding_group(LOCK) is None, "a stage started alone belongs to no run"
    monkeypatch.setenv(VARIABLE, "the run that was killed")
    with join_run():
        assert holding_group(LOCK) == "the run that was killed"
        monkeypatch.delenv(VARIABLE)
        with pytest.raises(Exception, match="a stage that outlived it"), hold_run_lock():
            raise AssertionError("it is at work")


def test_the_projects_files_are_valid_and_zombies_are_found_after_three_heartbeats() -> None:
    plan = read_plan(ROOT / FILE)
    assert [entry["name"] for entry in plan["deployments"]] == list(NAMES)
    assert plan["deployments"][0]["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    (automation,) = read_automations(AUTOMATIONS)
    for entry in plan["deployments"]:
        heartbeat = int(entry["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
        assert automation.trigger.within.total_seconds() >= 3 * heartbeat  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("edit", "key"),
    [
        (lambda plan: plan.update(deploments=[]), "deploments"),
        (lambda plan: plan["deployments"][0].update(shedules=[]), "deployments.shedules"),
        (lambda plan: plan["deployments"][0]["work_pool"].update(nmae=""), "deployments.work_pool.nmae"),
        (lambda plan: plan["deployments"][0]["triggers"][0].update(mtch={}), "retrain.triggers: .*mtch"),
        (lambda plan: plan["deployments"][0]["schedules"][0].update(cron=5), "cron"),
    ],
)
def test_an_unknown_key_or_value_is_refused(edit: object, key: str, tmp_path: Path) -> None:
    plan = yaml.safe_load((ROOT / FILE).read_text())
    edit(plan)  # type: ignore[operator]
    (tmp_path / FILE).write_text(yaml.safe_dump(plan))
    with pytest.raises(UsageError, match=key):
        read_plan(tmp_path / FILE)


@pytest.mark.parametrize(
    ("name", "pool", "tags", "is_refused"),
    [
        ("retrain", "other", ["project:cats"], True),
        ("other", "diffctl", ["project:cats"], True),
        ("other", "other", ["project:cats"], False),
        ("retrain", "diffctl", ["project:dogs", "mine"], False),
        ("retrain", "diffctl", ["mine"], False),  # of an earlier version
    ],
)
def test_deployments_and_pools_of_another_project_are_refused(name, pool, tags, is_refused: bool) -> None:
    there = SimpleNamespace(name=name, work_pool_name=pool, tags=tags, flow_id=None)
    unrelated = SimpleNamespace(name="unrelated", work_pool_name="unrelated", tags=[])
    client: Any = SimpleNamespace(
        read_deployments=lambda sort, offset: [unrelated, there][offset : offset + 1],  # a page
        read_flow=lambda _: SimpleNamespace(name="a flow"),
    )
    remedy = f"the tag project:cats.*`prefect deployment delete 'a flow/{name}'`"
    with pytest.raises(UsageError, match=remedy) if is_refused else nullcontext():
        _check_owner(client, read_plan(ROOT / FILE)["deployments"], "project:dogs")


@pytest.mark.parametrize("tags", [[TAG, "project:cats"], ["project:cats"], []])
def test_runs_of_other_deployments_are_no_zombies(tags: list[str]) -> None:
    from prefect.events.related import tags_as_related_resources
    from prefect.server.events.schemas.automations import EventTrigger
    from prefect.server.events.schemas.events import ReceivedEvent

    (automation,) = read_automations(AUTOMATIONS)
    trigger = EventTrigger.model_validate(automation.trigger.model_dump(mode="json"))
    run = {"prefect.resource.id": "prefect.flow-run.1"}
    related = [one.model_dump() for one in tags_as_related_resources(tags)]
    now = {"occurred": datetime.now(UTC), "received": datetime.now(UTC), "id": uuid4()}
    beat = {"event": "prefect.flow-run.heartbeat", "resource": run, "related": related}
    event = ReceivedEvent.model_validate({**beat, **now})
    assert trigger.covers(event) is (TAG in tags)


def test_tag_of_deployments_has_the_projects_name(project: Path) -> None:
    assert owner_tag() == "project:project"
    (project / MARK).write_text("name: cats\n")
    assert owner_tag() == "project:cats"


def test_templates_of_messages_are_valid(tmp_path: Path) -> None:
    text = AUTOMATIONS.read_text()
    head, _, template = text.partition("# - name:")
    made = "\n".join(line.removeprefix("# ") for line in f"# - name:{template}".splitlines())
    (tmp_path / "automations.yaml").write_text(f"{head}\n{textwrap.indent(made, '  ')}\n")
    path = tmp_path / "automations.yaml"
    names = [one.name for one in read_automations(path)]
    assert names == ["diffctl-zombies", "diffctl-webhook", "diffctl-email"]
    path.write_text(path.read_text().replace("match_related:", "mtch_related:"))
    with pytest.raises(UsageError, match="mtch_related"):
        read_automations(path)


def test_deploy_to_an_unreachable_server_is_a_temporary_error(project: Path) -> None:
    assert diffctl(project, "deploy", env={"PREFECT_API_URL": "http://127.0.0.1:9/api"}).returncode == 75


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nightly]:
    """The deployments on their servers, without a worker; `retrain` is scheduled for later."""
    with nightly(tmp_path_factory.mktemp("nightly"), {"interval": 86_400}) as deployed:
        yield deployed


@pytest.fixture(scope="module")
def worker(work: Nightly) -> Iterator[None]:
    with work.worker():
        yield


def triggered(work: Nightly) -> set[str]:
    """Return the runs that no schedule made."""
    return {run["id"] for run in work.runs() if not run["auto_scheduled"]}


@pytest.mark.slow
def test_deploying_again_changes_nothing_and_retrain_is_scheduled(work: Nightly) -> None:
    again = diffctl(work.clone, "deploy", env=work.env)
    assert (again.returncode, again.stderr) == (0, "")
    pools = post(f"{work.url}/work_pools/filter", {})
    assert [(pool["name"], pool["type"]) for pool in pools] == [("diffctl", "process")]
    automations = post(f"{work.url}/automations/filter", {})
    assert len(automations) == 2, "that for zombies, and retrain's trigger, each once"
    assert tags_of(work) == {one: ["diffctl", "project:project"] for one in NAMES}
    wait_until(lambda: "Scheduled" in work.states(), 60)


def tags_of(work: Nightly) -> dict[str, list[str]]:
    return {one["name"]: one["tags"] for one in post(f"{work.url}/deployments/filter", {})}


@pytest.mark.slow
def test_a_deploy_that_fails_halfway_leaves_no_deployment_without_owner(work: Nightly) -> None:
    text = (work.clone / FILE).read_text()
    plan = yaml.safe_load(text)
    plan["deployments"][0]["tags"] = ["mine"]
    plan["deployments"][2]["entrypoint"] = "flows.deployed.missing"
    (work.clone / FILE).write_text(yaml.safe_dump(plan))
    failed = diffctl(work.clone, "deploy", env=work.env)
    (work.clone / FILE).write_text(text)
    assert "Deploying evaluate" in failed.stderr
    assert set(tags_of(work)["retrain"]) == {"mine", "diffctl", "project:project"}
    assert diffctl(work.clone, "deploy", env=work.env).returncode == 0
    assert tags_of(work)["retrain"] == ["diffctl", "project:project"]


@pytest.mark.slow
def test_a_renamed_project_deploys_after_the_deletion_of_its_deployments(work: Nightly) -> None:
    for name in ("cats", "project"):
        (work.clone / MARK).write_text(f"name: {name}\n")
        while (done := diffctl(work.clone, "deploy", env=work.env)).returncode == 2:
            (command,) = re.findall(r"`prefect (deployment delete \S+)`", done.stderr)
            deleted = run_python(work.clone, "-m", "prefect", "--no-prompt", *command.split(), env=work.env)
            assert deleted.returncode == 0, deleted.stderr
        assert done.returncode == 0, done.stderr
        assert tags_of(work) == {one: ["diffctl", f"project:{name}"] for one in NAMES}
    git(work.clone, "checkout", "--quiet", str(MARK))


@pytest.mark.slow
def test_reap_frees_a_pending_run(work: Nightly) -> None:
    run_id = work.start("pipeline/retrain")
    work.set_state(run_id, "PENDING")
    patient = diffctl(work.clone, "runs", "reap", env=work.env)
    assert patient.stdout == f"{NOTHING}\n"
    freed = diffctl(work.clone, "runs", "reap", "--pending", "0", env=work.env)
    assert freed.returncode == 0, freed.stderr
    assert "pending for" in freed.stdout
    assert work.state_of(run_id) == "Crashed"


@pytest.mark.slow
def test_status_reports_the_failed_run_of_a_deployment(work: Nightly) -> None:
    run_id = work.start("pipeline/retrain")
    for kind in ("RUNNING", "FAILED"):
        work.set_state(run_id, kind, "train: it diverged", force=True)
    done = diffctl(work.clone, "status", "--check", "--json", env=work.env)
    found = json.loads(done.stdout)
    assert done.returncode == 1, done.stderr
    last = {one["deployment"]: (one["state"], one["reason"]) for one in found["deployments"]}
    assert last == {"retrain": ("Failed", "train: it diverged"), "sweep": ("", ""), "evaluate": ("", "")}
    assert "the last run of retrain is Failed (train: it diverged)" in found["problems"]
    assert "no worker polls for scheduled runs of the work pool diffctl" in found["problems"]


@pytest.mark.long
@pytest.mark.usefixtures("worker")
def test_changed_data_start_a_run_that_publishes_artifacts(work: Nightly) -> None:
    earlier = triggered(work)
    done = diffctl(work.clone, "emit", "data-changed", env=work.env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("digits has changed\n")
    wait_until(lambda: triggered(work) > earlier, 60)
    (run_id,) = triggered(work) - earlier
    wait_until(lambda: work.state_of(run_id) == "Running", 60)
    meanwhile = work.start("pipeline/retrain")
    wait_until(lambda: work.state_of(run_id) != "Running", 500)
    assert work.state_of(run_id) == "Completed"
    assert work.state_of(meanwhile) == "Cancelled", "one at a time"
    (name,) = [run["name"] for run in work.runs() if run["id"] == run_id]
    commit_id = git(work.clone, "rev-parse", "--short", "HEAD").strip()
    assert name.endswith(f" digits {commit_id}")
    assert (work.clone / "report/index.html").exists()
    assert not (work.elsewhere / "report").exists()
    assert all(sweep["parent_task_run_id"] for sweep in work.runs("sweep")), "a child of the run"
    artifacts = {one["key"]: one for one in post(f"{work.url}/artifacts/filter", {})}
    assert "promoted: the first one" in artifacts["scores"]["description"]
    assert "==> train" in {entry["message"] for entry in work.logs(run_id)}


@pytest.mark.long
@pytest.mark.usefixtures("worker")
def test_a_cancelled_run_saves_and_leaves_no_process(work: Nightly) -> None:
    origin = work.clone.parent / "origin"
    write_params(origin, train={"steps": 100_000, "save_every": 10, "seed": 1})
    commit(origin, "train for hours")
    earlier = set(work.clone.glob("runs/train/*"))
    run_id = work.start("pipeline/retrain")
    wait_until(
        lambda: {path.parent for path in work.clone.glob("runs/train/*/state-*")} - earlier != set(), 400
    )
    work.set_state(run_id, "CANCELLING")
    wait_until(lambda: work.state_of(run_id) == "Cancelled", 90)
    assert not [process for process in processes_in(work.clone) if "train" in process.cmdline()]
    wait_until(lambda: work.tasks(run_id)["train"] == "Cancelled")  # recorded after the run's state
    assert not [
        entry["message"]
        for entry in work.logs(run_id)
        if entry["level"] >= 40 and "Finished in state Cancelled" not in entry["message"]
    ]
