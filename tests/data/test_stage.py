"""The data stage: every profile with files in the official format, and changed raw files under DVC."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from diffusion.images.store import open_store
from tests.conftest import ROOT, write_params
from tests.helpers.raw_data import (
    random_images,
    write_cifar10,
    write_cifar100,
    write_folder,
    write_mini_imagenet,
    write_numbered,
    write_small_imagenet,
)
from tests.helpers.toy_project import script, toy_project

pytestmark = pytest.mark.slow

RAW = {  # writers of raw files by data.name
    "cifar10": lambda raw: write_cifar10(raw, random_images(0, 30, 32), np.arange(30) % 10, 10),
    "cifar100": lambda raw: write_cifar100(
        raw, random_images(0, 30, 32), np.arange(30), np.arange(30) % 20, 10
    ),
    "imagenet64": lambda raw: write_small_imagenet(raw, random_images(0, 40, 64), np.arange(40) * 25, 10),
    "mini-imagenet": lambda raw: write_mini_imagenet(
        raw, random_images(0, 30, 84), [f"n{at % 5}" for at in range(30)]
    ),
    "image-folder": lambda raw: write_numbered(raw, random_images(0, 20, 90), "ab"),
}
PREPARED = {  # by profile
    "digits": "1,297 train, 500 test images of 8×8×1, 10 classes",
    "fashion-mnist": "60,000 train, 10,000 test images of 28×28×1, 10 classes",
    "cifar10": "20 train, 10 test images of 32×32×3, 10 classes",
    "cifar100": "20 train, 10 test images of 32×32×3, 100 classes",
    "imagenet64": "30 train, 10 test images of 64×64×3, 1000 classes",
    "imagenet64-adm": "30 train, 10 test images of 64×64×3, 1000 classes",
    "mini-imagenet": "25 train, 5 test images of 64×64×3, 5 classes",
    "image-folder": "18 train, 2 test images of 64×64×3, 2 classes",
    "image-folder-cpu": "18 train, 2 test images of 32×32×3, 2 classes",
}


@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml")))
def test_data_stage_runs_for_every_profile(tmp_path, monkeypatch, invoke, profile):
    values = yaml.safe_load((ROOT / f"profiles/{profile}.yaml").read_text())
    if values["data"]["name"] in RAW:
        RAW[values["data"]["name"]](tmp_path / "raw")
        values["data"]["path"] = "raw"
    elif profile == "fashion-mnist" and not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFCTL_CACHE", str(tmp_path / "cache"))
    made = invoke("stage", "data")
    assert made.code == 0, made.err
    prepared, *hint = made.out.splitlines()
    assert prepared == f"data/prepared: {PREPARED[profile]}"
    hinted = f"{PREPARED[profile].rpartition(', ')[2]} found; `model.class_cond: true` uses them"
    assert hint == ([] if values["model"].get("class_cond") else [hinted])
    assert {"test", "train"} <= {path.name for path in (tmp_path / "data/prepared").iterdir()}


RUN = """
import asyncio
from flows.pipeline_steps import run_step
for name in ("data", "reference"):
    asyncio.run(run_step(name, False))
"""


def run(folder: Path) -> str:
    """Return the output of the first two steps."""
    environment = {"PREFECT_API_URL": "", "DIFFCTL_CACHE": str(folder / "cache")}
    output, _ = script(folder, RUN, environment).communicate(timeout=180)
    return output


def test_changed_folder_is_prepared_again(tmp_path: Path) -> None:
    """DVC does not detect it, since raw files are not dependencies."""
    images = random_images(0, 21, 8)
    write_numbered(tmp_path / "raw", images[:20], "ab")
    toy_project(tmp_path)
    graph = (tmp_path / "dvc.yaml").read_text().replace("- prepared", "- data/prepared")
    values = yaml.safe_load(graph)
    values["stages"]["data"] |= {"cmd": "diffctl stage data", "params": ["data"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(values))
    with open(tmp_path / ".gitignore", "a", encoding="utf-8") as file:
        file.write("/data/\n/runs/\n/raw/\n")
    write_params(tmp_path, data={"name": "image-folder", "path": "raw", "image_size": 8})
    assert "==> data\n" in run(tmp_path)
    assert "==> data: up to date" in run(tmp_path)
    write_folder(tmp_path / "raw", {"a/more": images[20]})
    output = run(tmp_path)
    assert "==> data: its raw files have changed since they were prepared" in output
    assert "reference at work" in output
    count = sum(len(open_store(tmp_path / "data/prepared" / split)) for split in ("train", "test"))
    assert count == 21
