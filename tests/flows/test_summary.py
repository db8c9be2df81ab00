"""What a run's page in Prefect says at its end."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from diffusion.images.store import write_store
from diffusion.layout import SAMPLES
from flows import summary as module
from flows.local import mlflow_page
from flows.summary import summary
from tests.helpers.scores_document import document


def test_it_says_the_best_cell_first_and_shows_its_images(project: Path) -> None:
    scores = document()
    best = scores.best.cell
    meta = {"name": best, "classes": [], "card": scores.cells[best].card}
    images = np.full((20, 8, 8, 1), 100, np.uint8)
    write_store(SAMPLES / best, images, None, meta)
    told = summary(scores, SAMPLES)
    assert told.startswith("Best: ")
    rows = [line for line in told.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(scores.cells)
    assert f"{scores.cells[best].scores[scores.spec.distance]:.4g}" in rows[2]
    assert "](data:image/png;base64," in told


def test_without_images_and_mlflow_it_is_a_table(project: Path) -> None:
    assert "data:image" not in summary(document(), SAMPLES)


def test_a_page_of_mlflow_is_shown_without_a_password(project: Path) -> None:
    assert mlflow_page("http://me:secret@127.0.0.1:9/") == "http://127.0.0.1:9"
    assert mlflow_page("sqlite:////mlflow.db") is None


def test_what_goes_wrong_with_it_is_said_and_ends_no_run(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(module.publish_summary("promoted"))
    assert "the page in Prefect has no summary" in capsys.readouterr().out
