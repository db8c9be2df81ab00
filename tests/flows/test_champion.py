"""The sweep and evaluate deployments: commands, refusals, and a full run on a real Prefect server."""

import asyncio
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cli.actions.scores import edit_scores, model_sweep
from diffusion.layout import PREPARED, SCORES
from diffusion.protocol.scores_document import read_scores, write_scores_document
from diffusion.system.errors import UsageError
from flows import champion, pipeline_run
from tests.conftest import environment
from tests.helpers.digits_sweep import write_prepared
from tests.helpers.mlflow_server import empty_database
from tests.helpers.nightly import post
from tests.helpers.prefect_home import PrefectServer, with_database
from tests.helpers.scores_document import document
from tests.helpers.small import own_code, small_project
from tests.helpers.toy_project import script
from tests.tracking.conftest import make_model  # noqa: F401 (a fixture)
from tracking import keys
from tracking.registry.registered_models import register
from tracking.store import connect

FLOWS = """
import asyncio
from flows.champion import evaluate, sweep_champion
asyncio.run(sweep_champion(grid={"steps": [3], "eta": [0.0]}))
asyncio.run(evaluate(against="data/prepared/test"))
"""


@pytest.mark.parametrize("arguments", [{"images": "a", "num_images": 5}, {"images": "run:1", "against": "b"}])
def test_ignored_or_missing_arguments_are_refused(project: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        asyncio.run(champion.evaluate.fn(**arguments))


def of(images: str, against: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the flow runs, and the description that it publishes."""
    ran: list[list[str]] = []

    async def do(name: str, arguments: list[str]) -> None:
        ran.append(arguments)

    async def publish(make: Any, description: str) -> None:
        ran.append([description])

    def with_reference(work: Any, delays: list[float]) -> Any:
        assert delays == [7.0]
        return work(do)

    monkeypatch.setattr(champion, "_with_reference", with_reference)
    monkeypatch.setattr(champion, "publish_markdown", publish)
    monkeypatch.setattr(champion, "read_scores", lambda path: document())
    asyncio.run(champion.evaluate.fn(images=images, against=str(against), retry_delays=[7.0]))
    return ran


def test_evaluate_runs_the_commands_of_its_arguments(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = ["sweep", "--run-id", "night"]
    assert of("run:night", PREPARED, monkeypatch) == [swept, ["run:night"]]
    assert of("champion", PREPARED.absolute(), monkeypatch)[0] == ["sweep", "--champion"]
    (project / "others").mkdir()
    best = ["evaluate", "runs/sweep/samples/steps10-eta0", "--against", "others"]
    assert of("run:night", "others", monkeypatch) == [
        swept,
        [*best, "--out", "runs/evaluate/scores.json"],
        ["run:night against others"],
    ]
    (plain, published) = of("folder", "others", monkeypatch)
    assert plain[:4] == ["evaluate", "folder", "--against", "others"]
    assert published == ["folder against others"]


def test_data_and_code_are_brought_up_to_date_first(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    async def refresh() -> None:
        ran.append("code")

    async def reproduce(stage: str, write: Any, *, force: bool) -> None:
        ran.append((stage, force))

    async def work(do: Any) -> None:
        ran.append("work")

    monkeypatch.setattr(champion, "refresh_code", refresh, raising=False)
    monkeypatch.setattr(champion, "retried", lambda work, delays: partial(work, write=print))
    monkeypatch.setattr(champion, "reproduce", partial(reproduce, write=None, force=False), raising=False)
    monkeypatch.setattr(champion, "stop_on_cancel", nullcontext)
    monkeypatch.setattr(pipeline_run, "reproduce", reproduce)
    monkeypatch.setattr(pipeline_run, "raw_files_changed", lambda: True)  # which DVC does not track
    asyncio.run(champion._with_reference(work, []))
    assert ran == ["code", ("data", False), ("data", True), ("reference", False), "work"]


@pytest.mark.slow
def test_scores_are_of_the_sampled_champion_though_another_is_promoted(
    project: Path,
    make_model: Any,  # noqa: F811
    invoke: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty_database(project / "mlflow.db")
    write_prepared(PREPARED)

    def promote(seed: int) -> dict[str, float]:
        make_model(seed, {(5, 0.0): 0.1**seed})
        assert register().promoted
        return {}

    promote(0)
    scores = read_scores(SCORES)

    def score_grid(*_: Any) -> Any:
        promote(1)
        write_scores_document(champion.SWEPT, scores)
        return scores

    monkeypatch.setattr(model_sweep, "score_grid", score_grid)
    monkeypatch.setattr(edit_scores, "_kernel_distance", lambda images, card, *_: (promote(2), card))
    assert invoke("sweep", "--champion", "--force").code == 0
    page = champion._swept(champion.CHAMPION)
    edits = ("--edit", "mask:0,0,4,8", "--steps", "1", "--num-images", "2", "--num", "2")
    done = invoke("evaluate", *edits, "--champion", "--force")
    assert done.code == 0, done.err
    folders = {
        int(one.version): [file.path for file in connect().list_artifacts(one.run_id, keys.EVALUATION_FOLDER)]
        for one in connect().search_model_versions("name = 'diffctl-digits'")
    }
    own = f"{keys.EVALUATION_FOLDER}/scores.json"
    assert folders == {
        1: [own, f"{keys.EVALUATION_FOLDER}/sweeps"],
        2: [f"{keys.EVALUATION_FOLDER}/edits", own],
        3: [own],
    }
    assert "run digits-00000000 in MLflow" in page
    assert page.endswith("- diffctl-digits version 1\n"), "it is no longer champion"


@pytest.mark.long
def test_both_flows_publish_scores_and_links(project, prefect_database, make_model):  # noqa: F811
    folder = small_project(project, sweep={"steps": [2], "eta": [0.0]})
    empty_database(folder / "mlflow.db")
    make_model(0)
    register()
    with_database(folder, prefect_database)
    server = PrefectServer(folder)
    try:
        url = server.start().url
        process = script(folder, FLOWS, environment({**own_code(folder), "PREFECT_API_URL": url}))
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        made = post(f"{url}/artifacts/filter", {})
        states = [run["state_name"] for run in post(f"{url}/flow_runs/filter", {})]
    finally:
        server.kill()
    assert set(states) == {"Completed"}
    assert len(states) == 4, "the two, and the cells of each below it"
    pages = {one["description"]: one["data"] for one in made if one["key"] == "scores"}
    assert len(pages) == 2
    for page in pages.values():
        assert "diffctl-digits version 1, the champion" in page
        assert "](data:image/png;base64," in page
    assert "| **3 steps, η = 0** |" in pages["the champion at other settings"]
    against = pages["champion against data/prepared/test"]
    assert against.startswith("20 images of runs/sweep/samples/steps2-eta0 against digits, extractor ")
    assert all(f"| {name} |" in against for name in ("fd_effnet_lite0_64", "**2 steps, η = 0**"))
