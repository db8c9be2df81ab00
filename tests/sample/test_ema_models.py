"""EMA models of a sweep: equal to the files of `diffctl ema`, and built once from the model's snapshots."""

from pathlib import Path

import pytest

from cli.commands.models import Ema
from diffusion.layout import AVERAGES, EMA_RUNS, MODEL
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.model.posthoc_ema import Snapshots, snapshot_path
from diffusion.protocol.grid import Cell
from diffusion.protocol.sample_sections import SampleConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.ema_models import existing_ema_models
from diffusion.sample.network_files import (
    CellFiles,
    NetworkFiles,
    check_networks,
    existing_files,
    guide_file,
    network_files,
)
from diffusion.system.errors import UsageError
from tests.helpers.networks import artefact_of, network_of, spec_of

SIGMA_RELS, STEPS = (0.05, 0.1), (4, 8)
SAMPLE = SampleConfig(num_images=2)
PLAIN, NARROW, WIDE = Cell(2, 0.0), Cell(2, 0.0, ema=0.07), Cell(3, 0.0, ema=0.2)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a training run of 8 steps, with its model and its EMA snapshots."""
    monkeypatch.chdir(tmp_path)
    write_training()
    return tmp_path


def write_training(seed: int = 0) -> None:
    spec = spec_of()
    save_artefact(MODEL, network_of(spec, seed=seed).state_dict(), artefact_of(spec, step=STEPS[-1]))
    for number, (sigma_rel, step) in enumerate(
        [(sigma_rel, step) for sigma_rel in SIGMA_RELS for step in STEPS], 1 + seed
    ):
        artefact = artefact_of(spec, step=step, ema_sigma_rel=sigma_rel)
        save_artefact(
            snapshot_path(AVERAGES, sigma_rel, step), network_of(spec, seed=number).state_dict(), artefact
        )


def test_cell_model_equals_the_file_of_the_ema_command(trained: Path) -> None:
    models = CellFiles(MODEL, SAMPLE, [PLAIN, NARROW, WIDE])
    assert (models.of(PLAIN), models.average_of(PLAIN)) == (NetworkFiles(MODEL), None)
    Ema(sigma_rel="0.07,0.2", out=trained / "written").run()
    for cell, name in ((NARROW, "ema-0.07"), (WIDE, "ema-0.2")):
        assert models.average_of(cell) == MODEL
        built = models.of(cell).model
        assert built.read_bytes() == (trained / f"written/{name}.safetensors").read_bytes()
        assert read_artefact(built).ema_sigma_rel == cell.ema


def test_ema_model_is_built_once_and_rebuilt_if_damaged(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[float] = []
    reconstruct = Snapshots.reconstruct
    monkeypatch.setattr(
        Snapshots,
        "reconstruct",
        lambda self, sigma_rel: built.append(sigma_rel) or reconstruct(self, sigma_rel),
    )
    assert existing_ema_models(MODEL, [0.07]) == {}
    files = [CellFiles(MODEL, SAMPLE, [NARROW]).of(Cell(steps, 0.0, ema=0.07)).model for steps in (2, 3, 4)]
    assert (built, len(set(files))) == ([0.07], 1)
    assert existing_ema_models(MODEL, [0.07, 0.2]) == {0.07: files[0]}
    original = bytearray(files[0].read_bytes())
    files[0].write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    assert CellFiles(MODEL, SAMPLE, [NARROW]).of(NARROW).model.read_bytes() == original
    assert built == [0.07, 0.07]


def test_changed_snapshot_changes_the_model(trained: Path) -> None:
    before = CellFiles(MODEL, SAMPLE, [NARROW]).of(NARROW).model
    artefact = artefact_of(spec_of(), step=8, ema_sigma_rel=0.1)
    save_artefact(snapshot_path(AVERAGES, 0.1, 8), network_of(spec_of(), seed=99).state_dict(), artefact)
    after = CellFiles(MODEL, SAMPLE, [NARROW]).of(NARROW).model
    assert read_artefact(before).model_sha256 != read_artefact(after).model_sha256
    assert existing_ema_models(MODEL, [0.07]) == {0.07: after}


def test_missing_or_foreign_snapshots_are_rejected_before_building(trained: Path) -> None:
    save_artefact(MODEL, network_of(spec_of()).state_dict(), artefact_of(spec_of(), step=9))
    with pytest.raises(UsageError, match=r"models/ema has snapshots of another training than models/model"):
        CellFiles(MODEL, SAMPLE, [PLAIN, WIDE])
    assert existing_ema_models(MODEL, [0.2]) == {}
    files = CellFiles(MODEL, SAMPLE, [PLAIN]).of(PLAIN)
    assert files == NetworkFiles(MODEL), "cells without an EMA profile need no snapshots"
    for path in AVERAGES.iterdir():
        path.unlink()
    with pytest.raises(UsageError, match="models/ema has no EMA snapshots"):
        CellFiles(MODEL, SAMPLE, [PLAIN, WIDE])
    assert not EMA_RUNS.exists()


def test_a_guide_is_a_profile_of_the_same_training_or_a_file(trained: Path) -> None:
    guided = Cell(2, 0.0, guidance=1.0, guide="ema:0.1@4")
    files = CellFiles(MODEL, SAMPLE, [PLAIN, guided]).of(guided)
    assert (files.model, files.classifier) == (MODEL, None)
    early, tracked = files.read().guide, read_artefact(snapshot_path(AVERAGES, 0.1, 4))
    assert early == tracked, "a tracked profile equals its snapshot"
    wide = CellFiles(MODEL, SAMPLE, [Cell(2, 0.0, guidance=1.0, guide="ema:0.2", ema=0.07)])
    of_both = wide.of(Cell(2, 0.0, guidance=1.0, guide="ema:0.2", ema=0.07)).read()
    assert of_both.model.ema_sigma_rel == 0.07
    assert (of_both.guide and (of_both.guide.ema_sigma_rel, of_both.guide.step)) == (0.2, 8)
    path = snapshot_path(AVERAGES, 0.05, 4)
    assert guide_file(str(path), MODEL) == path


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        ("ema:0.1@5", "no snapshot of step 5: there are 4, 8"),
        ("models/none", "there is no guide models/none"),
    ],
)
def test_a_missing_guide_is_refused_before_any_work(trained: Path, guide: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CellFiles(MODEL, SAMPLE, [Cell(2, 0.0, guidance=1.0, guide=guide)])
    spec = spec_of(in_channels=3, out_channels=6)
    save_artefact(Path("rgb.safetensors"), network_of(spec).state_dict(), artefact_of(spec))
    with pytest.raises(UsageError, match="the guide takes 8×8×3 images"):
        CellFiles(MODEL, SAMPLE, [Cell(2, 0.0, guidance=1.0, guide="rgb.safetensors")])


def test_checks_and_look_ups_of_a_guide_make_no_model_file(trained: Path) -> None:
    settings = SampleSettings(steps=2, guidance=1.0, guide="ema:0.07@4")
    check_networks(settings, MODEL)
    assert existing_files(settings, MODEL) == NetworkFiles(MODEL)
    assert not EMA_RUNS.exists()
    made = network_files(settings, MODEL)
    assert made.guide is not None
    assert existing_files(settings, MODEL) == made
    with pytest.raises(UsageError, match="no snapshot of step 5"):
        check_networks(settings.model_copy(update={"guide": "ema:0.07@5"}), MODEL)
    assert existing_files(settings.model_copy(update={"guide": "ema:0.07@5"}), MODEL) == NetworkFiles(MODEL)
