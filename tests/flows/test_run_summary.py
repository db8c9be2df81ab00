"""The summary artifact of a run in Prefect."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from diffusion.images.store import write_store
from diffusion.layout import SAMPLES, SCORES
from diffusion.protocol.scores_document import read_scores
from flows import run_summary as module
from flows.run_summary import evaluation_markdown, links_of_pipeline, sweep_markdown
from tests.helpers.mlflow_server import empty_database
from tests.helpers.scores_document import document
from tests.tracking.conftest import make_model  # noqa: F401 (a fixture)
from tracking.registry.registered_models import find_registered, register


def test_the_best_cell_is_first_with_its_images(project: Path) -> None:
    scores = document()
    best = scores.best.cell
    assert "data:image" not in sweep_markdown(scores, SAMPLES, links_of_pipeline())
    meta = {"name": best, "classes": [], "card": scores.cells[best].card}
    images = np.full((20, 8, 8, 1), 100, np.uint8)
    write_store(SAMPLES / best, images, None, meta)
    text = sweep_markdown(scores, SAMPLES, links_of_pipeline())
    assert text.startswith("Best: ")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(scores.cells)
    assert f"{scores.cells[best].scores[scores.spec.distance]:.4g}" in rows[2]
    assert "](data:image/png;base64," in text


def test_a_failed_summary_does_not_fail_the_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(module.publish_summary("promoted"))
    assert "the page in Prefect has no summary" in capsys.readouterr().out


def test_evaluated_has_a_row_per_score_with_its_interval() -> None:
    scores = {"fd": 12.3456, "fd_low": 11.0, "fd_high": 13.5, "kd": 0.5, "kd_std": 0.1}
    values = {
        "images": {"path": "cell", "count": 1200},
        "extractor": "an-extractor",
        "reference": {"name": "digits", "floor": {"fd": 2.5, "num_images": 60}},
        "scores": scores,
    }
    first, _, *rows = evaluation_markdown(values).splitlines()
    assert first == "1,200 images of cell against digits, extractor an-extractor"
    assert rows[2:] == [
        "| fd | &emsp;12.35 | &emsp;11 to 13.5 | &emsp;2.5 |",
        "| kd | &emsp;0.5 | &emsp; | &emsp; |",
    ]
    del values["reference"]["floor"]  # type: ignore[attr-defined]
    assert "| fd | &emsp;12.35 | &emsp;11 to 13.5 | &emsp; |" in evaluation_markdown(values)


@pytest.mark.slow
def test_the_registered_version_is_linked(project, make_model, monkeypatch):  # noqa: F811 (the fixture)
    empty_database(project / "mlflow.db")
    monkeypatch.setattr(module, "mlflow_page", lambda uri: "http://127.0.0.1:5000")

    def linked() -> str:
        return next(line for line in links_of_pipeline() if "version" in line)

    page = "http://127.0.0.1:5000/#/models/diffctl-digits/versions/{}?workflowType=machine_learning"
    make_model(0)
    register()
    first = read_scores(SCORES)
    assert linked() == f"[diffctl-digits version 1, the champion]({page.format(1)})"
    make_model(1, {(5, 0.0): 0.9})
    assert find_registered(read_scores(SCORES)) is None, "it is not registered yet"
    register()
    assert linked() == f"[diffctl-digits version 2]({page.format(2)})"
    cells = {first.best.cell: first.cells[first.best.cell]}
    other = first.model_copy(update={"protocol": None, "cells": cells})
    found = find_registered(other)
    assert found is not None, "other scores of the same weights"
    assert (found.version, found.is_champion) == (1, True)
