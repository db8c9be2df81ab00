"""The data stage on the command line: every profile with files in the official format, and DVC."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from diffusion.images.digests import content_digest
from diffusion.images.store import open_store
from tests.conftest import ROOT, diffctl, environment
from tests.helpers.file_server import serving
from tests.helpers.raw_data import (
    pack_tar,
    random_images,
    write_cifar10,
    write_cifar100,
    write_folder,
    write_mini_imagenet,
    write_small_imagenet,
)

pytestmark = pytest.mark.slow


def cifar10(raw):
    write_cifar10(raw, random_images(0, 30, 32), np.arange(30) % 10, 10)


def cifar100(raw):
    write_cifar100(raw, random_images(0, 30, 32), np.arange(30), np.arange(30) % 20, 10)


def imagenet64(raw):
    write_small_imagenet(raw, random_images(0, 40, 64), np.arange(40) * 25, 10)


def mini_imagenet(raw):
    write_mini_imagenet(raw, random_images(0, 30, 84), [f"n{at % 5}" for at in range(30)])


def image_folder(raw):
    write_folder(raw, {f"{'ab'[at % 2]}/{at}": image for at, image in enumerate(random_images(0, 20, 90))})


MAKE = {
    "digits": None,
    "fashion-mnist": None,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenet64": imagenet64,
    "imagenet64-adm": imagenet64,
    "mini-imagenet": mini_imagenet,
    "image-folder": image_folder,
}
MADE = {
    "digits": "1,297 train, 500 test images of 8×8×1, 10 classes",
    "fashion-mnist": "60,000 train, 10,000 test images of 28×28×1, 10 classes",
    "cifar10": "20 train, 10 test images of 32×32×3, 10 classes",
    "cifar100": "20 train, 10 test images of 32×32×3, 100 classes",
    "imagenet64": "30 train, 10 test images of 64×64×3, 1000 classes",
    "imagenet64-adm": "30 train, 10 test images of 64×64×3, 1000 classes",
    "mini-imagenet": "25 train, 5 test images of 64×64×3, 5 classes",
    "image-folder": "18 train, 2 test images of 64×64×3, 2 classes",
}


def test_every_profile_is_covered():
    assert MAKE.keys() == {path.stem for path in (ROOT / "profiles").glob("*.yaml")}


@pytest.mark.parametrize("name", MAKE)
def test_data_stage_runs_for_every_profile(tmp_path, name):
    values = yaml.safe_load((ROOT / f"profiles/{name}.yaml").read_text())
    if make := MAKE[name]:
        make(tmp_path / "raw")
        values["data"]["path"] = "raw"
    elif name == "fashion-mnist" and not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    made = diffctl(tmp_path, "stage", "data", env={"DIFFCTL_CACHE": str(tmp_path / "cache")})
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == f"data/prepared: {MADE[name]}"
    assert {"test", "train"} <= {path.name for path in (tmp_path / "data/prepared").iterdir()}


# `diffctl stage data` on an archive in the official format, with an address and checksum of this test.
STAGE = """
import dataclasses, sys
from diffusion.downloads.fetch import RemoteFile
from diffusion.data.sources import cifar

name, remote = {name!r}, RemoteFile{remote!r}
setattr(cifar, name, dataclasses.replace(getattr(cifar, name), remote=remote))
sys.argv[1:] = ["stage", "data"]
from cli.main import main
main()
"""


@pytest.mark.parametrize(("name", "make"), [("cifar10", cifar10), ("cifar100", cifar100)])
def test_cifar_is_downloaded_once(tmp_path, name, make):
    """The download is interrupted, resumed and verified; a second project needs no network."""
    make(tmp_path / "made")
    (unpacked,) = (tmp_path / "made").iterdir()
    archive = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}[name]
    content = pack_tar(unpacked, tmp_path / archive).read_bytes()
    checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"

    def staged(project):
        project.mkdir()
        shutil.copy(ROOT / f"profiles/{name}.yaml", project / "params.yaml")
        remote = (archive, (server.url(archive),), checksum, len(content))
        code = STAGE.format(name=name.upper(), remote=remote)
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=project,
            env=environment({"DIFFCTL_CACHE": str(tmp_path / "cache")}),
            capture_output=True,
            text=True,
            timeout=60,
        )

    with serving({archive: content}, "cut") as server:
        first = staged(tmp_path / "first")
        assert first.returncode == 0, first.stderr
        assert server.ranges() == [None, f"bytes={len(content) // 2}-"]
    assert first.stdout.strip() == f"data/prepared: {MADE[name]}"
    assert {path.name for path in unpacked.iterdir()} >= {
        path.name for path in (tmp_path / "cache" / name / unpacked.name).iterdir()
    }
    second = staged(tmp_path / "second")
    assert second.returncode == 0, second.stderr
    ours, theirs = (open_store(tmp_path / place / "data/prepared/train") for place in ("first", "second"))
    assert ours.digest == theirs.digest
    np.testing.assert_array_equal(ours.images, random_images(0, 30, 32)[:20])
    assert ours.labels.tolist() == (np.arange(20) % len(ours.meta["classes"])).tolist()


def run(folder, *arguments):
    subprocess.run(arguments, cwd=folder, check=True, capture_output=True, timeout=120)


def dvc(folder, *arguments):
    run(folder, sys.executable, "-m", "dvc", *arguments)


def test_dvc_pull_restores_prepared_data(tmp_path):
    """After push and pull the digest is equal, and Git has no data."""
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    origin.mkdir()
    stage = {
        "cmd": f"{sys.executable} -m cli.entry stage data",
        "params": ["data"],
        "outs": ["data/prepared"],
    }
    (origin / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"data": stage}}))
    (origin / "params.yaml").write_text((ROOT / "profiles/digits.yaml").read_text())
    (origin / ".gitignore").write_text("/data/\n/runs/\n")
    run(origin, "git", "init", "--quiet")
    dvc(origin, "init", "--quiet")
    dvc(origin, "remote", "add", "--default", "store", str(tmp_path / "remote"))
    dvc(origin, "repro")
    dvc(origin, "push")
    run(origin, "git", "add", "--all")
    run(origin, "git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "-m", "Prepare")
    run(tmp_path, "git", "clone", "--quiet", str(origin), str(clone))
    assert not (clone / "data").exists()
    dvc(clone, "pull")
    for split in ("train", "test"):
        made, pulled = (open_store(place / "data/prepared" / split) for place in (origin, clone))
        assert pulled.digest == made.digest == content_digest(pulled.images, pulled.labels)
