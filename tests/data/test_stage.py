"""The data stage under DVC: changed raw files."""

from pathlib import Path

import pytest
import yaml

from diffusion.images.store import open_store
from tests.conftest import write_params
from tests.helpers.raw_data import random_images, write_folder, write_numbered
from tests.helpers.toy_project import script, toy_project

pytestmark = pytest.mark.long


RUN = """
import asyncio
from flows.pipeline_run import run_step
for name in ("data", "reference"):
    asyncio.run(run_step(name))
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
    folder = {"name": "image-folder", "path": "raw", "image_size": 8}
    write_params(tmp_path, data=folder)
    assert "==> data\n" in run(tmp_path)
    write_params(tmp_path, data=folder, tracking={"title": "my-images"})
    assert "==> data: up to date" in run(tmp_path), "a title makes nothing stale"
    write_folder(tmp_path / "raw", {"a/more": images[20]})
    output = run(tmp_path)
    assert "==> data: its raw files have changed since they were prepared" in output
    assert "reference at work" in output
    count = sum(len(open_store(tmp_path / "data/prepared" / split)) for split in ("train", "test"))
    assert count == 21
