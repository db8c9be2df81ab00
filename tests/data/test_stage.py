"""The data stage on the command line: every profile with files in the official format."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.conftest import ROOT
from tests.helpers.raw_data import (
    random_images,
    write_cifar10,
    write_cifar100,
    write_mini_imagenet,
    write_numbered,
    write_small_imagenet,
)

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
