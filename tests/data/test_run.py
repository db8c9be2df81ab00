"""The data stage under `diffctl run`: retries and changed files, with real DVC, Prefect and HTTP."""

import gzip
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from diffusion.images.store import open_store
from tests.conftest import write_params
from tests.helpers.file_server import serving
from tests.helpers.prefect_home import recorded, with_database
from tests.helpers.raw_data import random_images, write_fashion, write_folder
from tests.helpers.toy_project import script, toy_project

pytestmark = pytest.mark.slow

# `diffctl stage data` on files in the official format, with addresses and checksums of this test.
STAGE = """
import sys, time
from pathlib import Path
from diffusion.downloads.fetch import RemoteFile
from diffusion.data.sources import fashion_mnist

files = {files}
fashion_mnist.FILES = [RemoteFile(*file) for file in files]
fashion_mnist.DEBIAN = Path("nowhere")
time.sleep = lambda seconds: None  # between attempts of the downloader
sys.argv[1:] = ["stage", "data"]
from cli.main import main
main()
"""
RUN = """
import asyncio
from flows.prefect_server.temporary_server import prefect_server
with prefect_server():
    from flows.pipeline import pipeline
    asyncio.run(pipeline(retry_delays=[0.1, 0.1], return_state=True))
"""


def project(folder: Path, database: Path, command: str, **data: object) -> Path:
    """Create the toy project with `command` as its data stage."""
    with_database(folder, database)
    toy_project(folder)
    graph = yaml.safe_load((folder / "dvc.yaml").read_text())
    graph["stages"]["data"] = {"cmd": command, "params": ["data"], "outs": ["data/prepared"]}
    for stage in graph["stages"].values():
        stage["deps"] = ["data/prepared" if dep == "prepared" else dep for dep in stage.get("deps", [])]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(graph))
    with open(folder / ".gitignore", "a", encoding="utf-8") as file:
        file.write("/data/\n/runs/\n/raw/\n")
    write_params(folder, data=data)
    return folder


def run(folder: Path) -> str:
    """Return the output of the pipeline."""
    environment = {"PREFECT_API_URL": "", "DIFFCTL_CACHE": str(folder / "cache")}
    output, _ = script(folder, RUN, environment).communicate(timeout=180)
    return output


@pytest.mark.parametrize(
    ("faults", "wrong", "tries", "state"),
    [
        (["503"] * 7, False, 2, "Completed"),  # the downloader stops after six attempts
        (["503"] * 18, False, 3, "Failed"),
        ([], True, 1, "Failed"),
    ],
)
def test_unreachable_server_is_retried_and_wrong_file_is_not(
    tmp_path: Path, prefect_database: Path, faults: list[str], wrong: bool, tries: int, state: str
) -> None:
    made = write_fashion(tmp_path / "made", random_images(0, 40, 28, 1), np.arange(40) % 10, 10)
    contents = {path.name: path.read_bytes() for path in made.iterdir()}
    served = {
        name: gzip.compress(b"another file") if wrong else content for name, content in contents.items()
    }
    with serving(served, *faults) as server:
        files = [
            (name, (server.url(name),), f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))
            for name, content in contents.items()
        ]
        home = tmp_path / "project"
        home.mkdir()
        project(home, prefect_database, "python stage.py", name="fashion-mnist")
        (home / "stage.py").write_text(STAGE.replace("{files}", repr(files)))
        output = run(home)
        requests = len(server.requests)
        if state == "Completed":
            in_a_second_clone(home)
            assert len(server.requests) == requests
    assert output.count("==> data\n") == tries
    assert recorded(home)["data"] == state
    assert ("serves another file" in output) is wrong
    assert ("; trying again in 0.1 s (1 of 2)" in output) is not wrong


def in_a_second_clone(home: Path) -> None:
    """Check that the same stage in another folder gives the same data."""
    clone = home.parent / "clone"
    clone.mkdir()
    for name in ("stage.py", "params.yaml"):
        shutil.copy(home / name, clone)
    environment = {"DIFFCTL_CACHE": str(home / "cache")}
    output, _ = script(clone, (clone / "stage.py").read_text(), environment).communicate(timeout=60)
    assert "30 train, 10 test images" in output
    first, second = (open_store(place / "data/prepared/train") for place in (home, clone))
    assert first.digest == second.digest


def test_changed_folder_is_prepared_again(tmp_path: Path, prefect_database: Path) -> None:
    """DVC does not detect it, since raw files are not dependencies."""
    images = random_images(0, 21, 8)
    write_folder(tmp_path / "raw", {f"{'ab'[at % 2]}/{at}": image for at, image in enumerate(images[:20])})
    project(tmp_path, prefect_database, "diffctl stage data", name="image-folder", path="raw", image_size=8)
    assert "==> data\n" in run(tmp_path)
    assert "==> data: up to date" in run(tmp_path)
    write_folder(tmp_path / "raw", {"a/more": images[20]})
    output = run(tmp_path)
    assert "==> data: its raw files have changed since they were prepared" in output
    assert "reference at work" in output
    count = sum(len(open_store(tmp_path / "data/prepared" / split)) for split in ("train", "test"))
    assert count == 21
