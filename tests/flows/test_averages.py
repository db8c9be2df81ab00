"""A sweep over EMA profiles from end to end: `diffctl run`, again, and with another list."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from diffusion.layout import AVERAGES, CELL_RUNS, MODEL, PARAMS, SAMPLES
from diffusion.model.model_file import read_artefact
from diffusion.system.files import sha256_file
from tests.conftest import command, environment
from tests.helpers.prefect_home import with_database
from tests.helpers.small import own_code, small_project
from tracking import keys
from tracking.store import connect

NAME = "diffctl-digits"
TRAIN = {"ema_profiles": {"sigma_rel": [0.05, 0.1], "every": 4}}
SWEEP = {"steps": [2], "eta": [0.0], "ema": [0.1, 0.2]}


def started(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    env = environment(own_code(folder))
    return subprocess.run(command(*arguments), cwd=folder, env=env, capture_output=True, text=True)


def run(folder: Path, *arguments: str) -> str:
    done = started(folder, *arguments)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def shards(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / CELL_RUNS).rglob("*.npy")}


def with_widths(folder: Path, widths: list[object]) -> None:
    values = yaml.safe_load((folder / PARAMS).read_text())
    values["sweep"]["ema"] = widths
    (folder / PARAMS).write_text(yaml.safe_dump(values))


@pytest.mark.long
def test_the_best_ema_profile_is_registered_and_a_longer_list_samples_new_cells_only(
    tmp_path: Path, prefect_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_project(tmp_path / "project", train=TRAIN, sweep=SWEEP)
    with_database(folder, prefect_database)
    assert "version 1: promoted" in run(folder, "run")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    (version,) = connect().search_model_versions(f"name = '{NAME}'")
    best = json.loads((folder / "metrics/scores.json").read_text())["best"]["cell"]
    width = best.rpartition("ema")[2]
    run(folder, "ema", "--sigma-rel", width, "--out", "written")
    written = folder / f"written/ema-{width}.safetensors"
    assert version.tags[keys.FILE_SHA256] == sha256_file(written)
    assert version.tags[keys.MODEL_SHA256] == read_artefact(written).model_sha256
    assert version.tags[keys.EMA_SIGMA_REL] == width
    run(folder, "sample", "--champion", "--num", "2", "--steps", "2", "--out", "champion.npz")
    run(folder, "sample", "--model", str(written), "--num", "2", "--steps", "2", "--out", "file.npz")
    assert (folder / "champion.npz").read_bytes() == (folder / "file.npz").read_bytes()

    before = shards(folder)
    output = run(folder, "run")
    assert [line for line in output.splitlines() if "sample" in line] == ["==> sample: up to date"]
    assert shards(folder) == before

    with_widths(folder, ["decay", 0.2, 0.25])
    run(folder, "stage", "sample")
    after = shards(folder)
    assert before.items() <= after.items(), "no shard is sampled again"
    assert {path.parent.parent.name for path in after.keys() - before.keys()} == {
        sha256[:16]
        for sha256 in (card(folder, cell)["model_sha256"] for cell in ("steps2-eta0", "steps2-eta0-ema0.25"))
    }
    assert sorted(path.name for path in (folder / SAMPLES).iterdir()) == [
        "steps2-eta0", "steps2-eta0-ema0.2", "steps2-eta0-ema0.25"
    ]  # fmt: skip
    assert card(folder, "steps2-eta0")["model_sha256"] == read_artefact(folder / MODEL).model_sha256

    for path in (folder / AVERAGES).iterdir():
        path.unlink()
    refused = started(folder, "stage", "sample")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert len(list((folder / SAMPLES).iterdir())) == 3


def card(folder: Path, cell: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / SAMPLES / cell / "meta.json").read_text())["card"]
    return found
