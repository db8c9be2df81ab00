"""The networks of a sweep's cells: EMA models, equal to those of `diffctl ema`, guides and classifiers."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cli.models.model_commands import Ema
from diffusion.layout import AVERAGES, CELL_RUNS, EMA_RUNS, MODEL, SAMPLES
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.model.posthoc_ema import Snapshots, snapshot_path
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.grid import Cell, cell_settings, grid
from diffusion.protocol.sample_sections import SampleConfig, SweepConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.cell_images import make_cell
from diffusion.sample.ema_files import existing_ema_models
from diffusion.sample.network_files import (
    CellFiles,
    NetworkArtefacts,
    NetworkFiles,
    check_networks,
    existing_files,
    network_files,
)
from diffusion.sample.sampling_card import sampling_card, sampling_code, shards_folder
from diffusion.system.errors import UsageError
from tests.helpers.networks import artefact_of, loaded_classifier, network_of, spec_of

SIGMA_RELS, STEPS = (0.05, 0.1), (4, 8)
SAMPLE = SampleConfig(num_images=2)


def cell_of(steps: int, **axes: Any) -> Cell:
    return Cell(steps=steps, eta=0.0, **axes)


PLAIN, NARROW, WIDE = cell_of(2), cell_of(2, ema=0.07), cell_of(3, ema=0.2)


def save(path: Path, seed: int, **changes: Any) -> None:
    spec = changes.pop("spec", spec_of())
    save_artefact(path, network_of(spec, seed).state_dict(), artefact_of(spec, **changes))


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a training run of 8 steps, with its model and its EMA snapshots."""
    monkeypatch.chdir(tmp_path)
    save(MODEL, 0, step=STEPS[-1])
    for seed, (sigma_rel, step) in enumerate(product(SIGMA_RELS, STEPS), 1):
        save(snapshot_path(AVERAGES, sigma_rel, step), seed, step=step, ema_sigma_rel=sigma_rel)
    return tmp_path


def test_cell_model_equals_the_file_of_the_ema_command(trained: Path) -> None:
    models = CellFiles(MODEL, SAMPLE, [PLAIN, NARROW, WIDE])
    assert models.of(PLAIN) == NetworkFiles(MODEL)
    Ema(sigma_rel="0.07,0.2", out=trained / "written").run()
    for cell, name in ((NARROW, "ema-0.07"), (WIDE, "ema-0.2")):
        built = models.of(cell).model
        assert built.read_bytes() == (trained / f"written/{name}.safetensors").read_bytes()
        assert read_artefact(built).ema_sigma_rel == cell.ema


def test_ema_model_is_built_once_and_rebuilt_if_damaged(trained, monkeypatch) -> None:
    built: list[float] = []
    reconstruct = Snapshots.reconstruct
    watched = lambda self, sigma_rel: built.append(sigma_rel) or reconstruct(self, sigma_rel)  # noqa: E731
    monkeypatch.setattr(Snapshots, "reconstruct", watched)
    assert existing_ema_models(MODEL, [0.07]) == {}
    files = [CellFiles(MODEL, SAMPLE, [NARROW]).of(cell_of(steps, ema=0.07)).model for steps in (2, 3, 4)]
    assert (built, len(set(files))) == ([0.07], 1)
    assert existing_ema_models(MODEL, [0.07, 0.2]) == {0.07: files[0]}
    original = bytearray(files[0].read_bytes())
    files[0].write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    assert CellFiles(MODEL, SAMPLE, [NARROW]).of(NARROW).model.read_bytes() == original
    assert built == [0.07, 0.07]


def test_missing_or_foreign_snapshots_are_rejected_before_building(trained: Path) -> None:
    save(MODEL, 0, step=9)
    with pytest.raises(UsageError, match=r"models/ema has snapshots of another training than models/model"):
        CellFiles(MODEL, SAMPLE, [PLAIN, WIDE])
    assert existing_ema_models(MODEL, [0.2]) == {}
    guided, known = cell_of(2, guidance=1.0, guide="ema:0.1@4"), snapshot_path(AVERAGES, 0.1, 4)
    assert CellFiles(MODEL, SAMPLE, [guided], known={"ema:0.1@4": known}).of(guided).guide == known
    with pytest.raises(UsageError, match="snapshots of another training"):
        CellFiles(MODEL, SAMPLE, [guided], known={"ema:0.2": known})
    files = CellFiles(MODEL, SAMPLE, [PLAIN]).of(PLAIN)
    assert files == NetworkFiles(MODEL), "cells without an EMA profile need no snapshots"
    for path in AVERAGES.iterdir():
        path.unlink()
    with pytest.raises(UsageError, match="models/ema has no EMA snapshots"):
        CellFiles(MODEL, SAMPLE, [PLAIN, WIDE])
    assert not EMA_RUNS.exists()


def test_learned_times_of_another_training_are_refused_for_its_profiles_too(trained: Path) -> None:
    def sample(sha256: str) -> SampleConfig:
        options = {"levels": [9.0, 0.5], "model_sha256": sha256}
        return SAMPLE.model_copy(update={"spacing": "learned", "spacing_options": options})

    assert CellFiles(MODEL, sample(read_artefact(MODEL).model_sha256), [NARROW]).of(NARROW).model != MODEL
    with pytest.raises(UsageError, match="the learned times are of model 0000"):
        CellFiles(MODEL, sample("0" * 64), [NARROW])


def test_a_guide_is_a_profile_of_the_same_training_or_a_file(trained: Path) -> None:
    guided = cell_of(2, guidance=1.0, guide="ema:0.1@4")
    files = CellFiles(MODEL, SAMPLE, [PLAIN, guided]).of(guided)
    assert (files.model, files.classifier) == (MODEL, None)
    early, tracked = files.read().guide, read_artefact(snapshot_path(AVERAGES, 0.1, 4))
    assert early == tracked, "a tracked profile equals its snapshot"
    both = cell_of(2, guidance=1.0, guide="ema:0.2", ema=0.07)
    of_both = CellFiles(MODEL, SAMPLE, [both]).of(both).read()
    assert of_both.model.ema_sigma_rel == 0.07
    assert (of_both.guide and (of_both.guide.ema_sigma_rel, of_both.guide.step)) == (0.2, 8)
    path = snapshot_path(AVERAGES, 0.05, 4)
    assert network_files(SampleSettings(guidance=1.0, guide=str(path)), MODEL).guide == path


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        ("ema:0.1@5", "no snapshot of step 5: there are 4, 8"),
        ("models/none", "there is no guide models/none"),
        ("rgb.safetensors", "the guide takes 8×8×3 images"),
    ],
)
def test_a_missing_or_unfit_guide_is_refused_before_any_work(trained: Path, guide: str, message: str) -> None:
    save(Path("rgb.safetensors"), 0, spec=spec_of(in_channels=3, out_channels=6))
    with pytest.raises(UsageError, match=message):
        CellFiles(MODEL, SAMPLE, [cell_of(2, guidance=1.0, guide=guide)])


def test_checks_and_look_ups_of_a_guide_make_no_model_file(trained: Path) -> None:
    settings = SampleSettings(steps=2, guidance=1.0, guide="ema:0.07@4")
    check_networks(settings, MODEL, AVERAGES)
    assert existing_files(settings, MODEL) == NetworkFiles(MODEL)
    assert not EMA_RUNS.exists()
    made = network_files(settings, MODEL)
    assert made.guide is not None
    assert existing_files(settings, MODEL) == made
    without = settings.model_copy(update={"guide": "ema:0.07@5"})
    with pytest.raises(UsageError, match="no snapshot of step 5"):
        check_networks(without, MODEL, AVERAGES)
    assert existing_files(without, MODEL) == NetworkFiles(MODEL)


GUIDE, CLASSIFIER = "early.safetensors", "classifier.safetensors"
FREE = spec_of(num_classes=0, null_class=False)


@pytest.fixture
def guided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a model without classes, a guide and a classifier into the working directory."""
    monkeypatch.chdir(tmp_path)
    save(MODEL, 0, spec=FREE)
    save(Path(GUIDE), 1, spec=FREE)
    classifier = loaded_classifier()
    save_artefact(Path(CLASSIFIER), classifier.network.state_dict(), classifier.artefact)


@pytest.mark.slow
def test_a_cell_states_its_guide_and_classifier_and_has_the_labels_of_the_classifier(guided: None) -> None:
    sample = SampleConfig(num_images=12, guidance=0.5, guide=GUIDE, classifier=CLASSIFIER)
    cells = grid(sample, SweepConfig(steps=[2], eta=[0.0], classifier_scale=[0.0, 2.0]))
    files = CellFiles(MODEL, sample, cells)
    plain, made = (make_cell(sample, cell, files.of(cell), SAMPLES / cell.name) for cell in cells)
    networks = files.of(cells[1]).read()
    card = made.meta["card"]
    assert networks.guide is not None
    assert networks.classifier is not None
    assert card["guide_sha256"] == plain.meta["card"]["guide_sha256"] == networks.guide.model_sha256
    assert card["classifier_sha256"] == networks.classifier.model_sha256
    assert (card["classifier_scale"], card["nfe"]) == (2.0, 4), "a classifier's calls do not count"
    assert "classifier_sha256" not in plain.meta["card"], "at scale 0 it is not used"
    assert plain.labels is None
    assert made.labels is not None
    assert made.labels.tolist() == [*range(10), 0, 1]
    assert made.meta["classes"] == list(networks.classifier.data.classes)
    assert (made.images[:10] != plain.images[:10]).any()


@pytest.mark.slow
def test_another_guide_of_the_same_name_changes_card_and_key(guided: None) -> None:
    """A finished cell is reused until then."""
    sample, cell = SampleConfig(num_images=4), cell_of(2, guidance=1.0, guide=GUIDE)
    settings = cell_settings(sample, cell)

    def run() -> tuple[Path, dict[str, object], bytes]:
        files = CellFiles(MODEL, sample, [cell]).of(cell)
        images = make_cell(sample, cell, files, SAMPLES / cell.name).images.tobytes()
        return shards_folder(settings, files.read()), sampling_card(settings, files.read()), images

    (first, card, images), again = run(), run()
    assert again == (first, card, images)
    save(Path(GUIDE), 2, spec=FREE)
    second, other, changed = run()
    assert first != second
    assert images != changed
    assert {name for name in card if card[name] != other[name]} == {"guide_sha256"}
    assert len(list(CELL_RUNS.glob("*/*/*.npy"))) == 2


def test_the_key_contains_the_code_of_the_classifiers_process() -> None:
    spec, classifier = spec_of(), loaded_classifier().artefact
    other = classifier.model_copy(update={"process": ProcessConfig(schedule="edm", sigma_data=0.5)})
    code = sampling_code(
        SampleSettings(classifier=CLASSIFIER), NetworkArtefacts(artefact_of(spec), None, other)
    )
    assert "diffusion.process.continuous" in code
