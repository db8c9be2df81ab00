"""One edited pixel among a thousand images: every consumer refuses and leaves nothing behind."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cli.commands import pipeline
from diffusion.analysis.image_inputs import open_matching_store
from diffusion.check import check
from diffusion.config import load
from diffusion.evaluate.adhoc import open_inputs, score_images
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.images import store
from diffusion.images.store import open_store
from diffusion.layout import MODEL, PREPARED, SAMPLES, SCORES
from diffusion.model.model_file import read_artefact
from diffusion.protocol.grid import Cell, open_cells
from diffusion.protocol.scores_document import write_scores_document
from diffusion.system.errors import DiffctlError
from tests.helpers.digits_sweep import ONE_CELL, tamper, write_cell
from tests.helpers.networks import with_model
from tests.helpers.prepared import copy_data
from tests.helpers.scores_document import document

CELL = SAMPLES / "steps50-eta0"


@pytest.fixture
def edited(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with real images and a cell, all verified as large stores are: once until they change."""
    monkeypatch.setattr(store, "LARGE", 0)
    (project / "runs").mkdir()
    config = with_model(project, sample={"num_images": 1000}, sweep=ONE_CELL)
    own = read_artefact(MODEL).model_sha256
    write_cell(project / CELL, config, Cell(steps=50, eta=0.0), model_sha256=own)
    copy_data(project)
    open_cells(config.sample, config.sweep, SAMPLES)
    for split in ("train", "test"):
        open_store(PREPARED / split)
    return project


def look() -> None:
    """Raise what `diffctl check` finds."""
    for finding in check(load()):
        if finding.level == "error" and "changed after" in finding.message:
            raise DiffctlError(finding.message)


TRAIN = PREPARED / "train"
CONSUMERS: dict[tuple[Path, str], Callable[[], object]] = {
    (CELL, "evaluate"): pipeline.EvaluateStage().run,
    (CELL, "report"): pipeline.ReportStage().run,
    (CELL, "evaluate PATH"): lambda: score_images(open_inputs(CELL, PREPARED), EvaluateConfig()),
    (TRAIN, "reference"): pipeline.ReferenceStage().run,
    (TRAIN, "train"): pipeline.TrainStage().run,
    (TRAIN, "classifier"): pipeline.ClassifierStage().run,
    (TRAIN, "nll, encode, interpolate"): lambda: open_matching_store(TRAIN, read_artefact(MODEL)),
    (TRAIN, "evaluate PATH"): lambda: score_images(open_inputs(CELL, PREPARED), EvaluateConfig()),
    (TRAIN, "check"): look,
}


@pytest.mark.parametrize(("part", "consumer"), CONSUMERS)
def test_edited_pixel_is_refused(edited: Path, part: Path, consumer: str) -> None:
    tamper(edited / part, row=-7)
    scores = edited / SCORES
    write_scores_document(scores, document({(50, 0.0): 0.3}))
    before = scores.read_bytes()
    with pytest.raises(DiffctlError, match=rf"{part} changed after they were written"):
        CONSUMERS[part, consumer]()
    assert list(scores.parent.iterdir()) == [scores]
    assert scores.read_bytes() == before
    assert not (edited / "report").exists()
    assert not (edited / "data/reference").exists()
