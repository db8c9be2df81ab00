"""The pipeline with a batch size of one."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffusion.layout import SCORES
from tests.conftest import diffctl, write_params
from tests.helpers.networks import assert_equal_but_for_rounding, cell_images

CELLS = {"steps": [2], "eta": [1.0]}


@pytest.mark.long
def test_batches_of_one_give_the_same_images_and_scores(project: Path) -> None:
    """The images are equal up to rounding, and so are the scores."""
    train = {"batch_size": 1, "steps": 6, "lr": {"rate": 0.002, "warmup": 2}}

    def stages(batch: int, *names: str) -> None:
        sizes = {"sample": {"batch_size": batch}, "evaluate": {"batch_size": batch}}
        write_params(project, train=train, sweep=CELLS, **sizes)
        for name in names:
            done = diffctl(project, "stage", name)
            assert done.returncode == 0, done.stderr
            assert "Traceback" not in done.stderr

    stages(1, "data", "reference", "train", "sample", "evaluate", "report")
    (images,), scores = cell_images(project).values(), json.loads((project / SCORES).read_text())
    for folder in (project / "runs/cells").iterdir():
        folder.rename(project / folder.name)  # else its shards would be reused
    stages(8, "sample", "evaluate")
    (again,) = cell_images(project).values()
    assert_equal_but_for_rounding(again, images)
    (cell,), (other,) = scores["cells"].values(), json.loads((project / SCORES).read_text())["cells"].values()
    assert {key: cell["card"][key] for key in cell["card"]} == other["card"]
    for name, value in cell["scores"].items():
        assert np.isclose(value, other["scores"][name], rtol=0.02), name
