"""Cells with guides and classifiers: their cards, labels, and the key of their finished shards."""

from pathlib import Path

import pytest

from diffusion.layout import CELL_RUNS, MODEL, SAMPLES
from diffusion.model.model_file import save_artefact
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.grid import Cell, cell_settings, grid
from diffusion.protocol.sample_sections import SampleConfig, SweepConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.cell_images import make_cell, sampling_card, shards_folder
from diffusion.sample.network_files import CellFiles
from diffusion.sample.sampling_code import sampling_code
from tests.helpers.networks import artefact_of, loaded_classifier, network_of, spec_of

GUIDE, CLASSIFIER = "early.safetensors", "classifier.safetensors"


@pytest.fixture(autouse=True)
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a model without classes, a guide and a classifier into the working directory."""
    monkeypatch.chdir(tmp_path)
    write(MODEL, 0)
    write(Path(GUIDE), 1)
    classifier = loaded_classifier()
    save_artefact(Path(CLASSIFIER), classifier.network.state_dict(), classifier.artefact)


def write(path: Path, seed: int) -> None:
    spec = spec_of(num_classes=0, null_class=False)
    save_artefact(path, network_of(spec, seed).state_dict(), artefact_of(spec))


def test_a_cell_states_its_guide_and_classifier_and_has_the_labels_of_the_classifier() -> None:
    sample = SampleConfig(num_images=12, guidance=0.5, guide=GUIDE, classifier=CLASSIFIER)
    cells = grid(sample, SweepConfig(steps=[2], eta=[0.0], classifier_scale=[0.0, 2.0]))
    files = CellFiles(MODEL, sample, cells)
    plain, guided = (make_cell(sample, cell, files.of(cell), SAMPLES / cell.name) for cell in cells)
    networks = files.of(cells[1]).read()
    card = guided.meta["card"]
    assert networks.guide is not None
    assert networks.classifier is not None
    assert card["guide_sha256"] == plain.meta["card"]["guide_sha256"] == networks.guide.model_sha256
    assert card["classifier_sha256"] == networks.classifier.model_sha256
    assert (card["classifier_scale"], card["nfe"]) == (2.0, 4), "a classifier's calls do not count"
    assert "classifier_sha256" not in plain.meta["card"], "at scale 0 it is not used"
    assert plain.labels is None
    assert guided.labels is not None
    assert guided.labels.tolist() == [*range(10), 0, 1]
    assert guided.meta["classes"] == list(networks.classifier.data.classes)
    assert (guided.images[:10] != plain.images[:10]).any()


def test_another_guide_of_the_same_name_changes_card_and_key_and_finished_cells_are_reused() -> None:
    sample, cell = SampleConfig(num_images=4), Cell(2, 0.0, guidance=1.0, guide=GUIDE)
    settings = cell_settings(sample, cell)

    def run() -> tuple[Path, dict[str, object], bytes]:
        files = CellFiles(MODEL, sample, [cell]).of(cell)
        images = make_cell(sample, cell, files, SAMPLES / cell.name).images.tobytes()
        return shards_folder(settings, files.read()), sampling_card(settings, files.read()), images

    (first, card, images), again = run(), run()
    assert again == (first, card, images)
    write(Path(GUIDE), 2)
    second, other, changed = run()
    assert first != second
    assert images != changed
    assert {name for name in card if card[name] != other[name]} == {"guide_sha256"}
    assert len(list(CELL_RUNS.glob("*/*/*.npy"))) == 2


def test_the_key_contains_the_code_of_the_classifiers_process() -> None:
    spec, classifier = spec_of(), loaded_classifier().artefact
    other = classifier.model_copy(update={"process": ProcessConfig(schedule="edm", sigma_data=0.5)})
    code = sampling_code(SampleSettings(classifier=CLASSIFIER), artefact_of(spec), None, other)
    assert "diffusion.process.edm" in code
