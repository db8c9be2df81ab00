"""Models of a sweep's widths: the file that `diffctl ema` writes, made once, of the model's own snapshots."""

from pathlib import Path

import pytest

from cli.commands.models import ema
from diffusion.layout import AVERAGES, EMA_RUNS, MODEL
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.model.posthoc_ema import Snapshots, snapshot_path
from diffusion.protocol.grid import Cell
from diffusion.sample.ema_models import EMAModelFiles, existing_ema_models
from diffusion.system.errors import UsageError
from tests.helpers.networks import artefact_of, network_of, spec_of

WIDTHS, STEPS = (0.05, 0.1), (4, 8)
PLAIN, NARROW, WIDE = Cell(2, 0.0), Cell(2, 0.0, ema=0.07), Cell(3, 0.0, ema=0.2)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a training of 8 steps: its model and its snapshots."""
    monkeypatch.chdir(tmp_path)
    write_training()
    return tmp_path


def write_training(seed: int = 0) -> None:
    spec = spec_of()
    save_artefact(MODEL, network_of(spec, seed=seed).state_dict(), artefact_of(spec, step=STEPS[-1]))
    for number, (width, step) in enumerate([(width, step) for width in WIDTHS for step in STEPS], 1 + seed):
        said = artefact_of(spec, step=step, ema_sigma_rel=width)
        save_artefact(snapshot_path(AVERAGES, width, step), network_of(spec, seed=number).state_dict(), said)


def test_a_cell_is_of_the_very_file_that_is_written_for_its_width(trained: Path) -> None:
    models = EMAModelFiles(MODEL, [PLAIN, NARROW, WIDE])
    assert (models.file(PLAIN), models.average_of(PLAIN)) == (MODEL, None)
    ema(sigma_rel="0.07,0.2", out=trained / "written")
    for cell, name in ((NARROW, "ema-0.07"), (WIDE, "ema-0.2")):
        assert models.average_of(cell) == MODEL
        made = models.file(cell)
        assert made.read_bytes() == (trained / f"written/{name}.safetensors").read_bytes()
        assert read_artefact(made).ema_sigma_rel == cell.ema


def test_a_width_is_made_once_and_again_where_it_is_damaged(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []
    reconstruct = Snapshots.reconstruct
    monkeypatch.setattr(
        Snapshots, "reconstruct", lambda self, width: made.append(width) or reconstruct(self, width)
    )
    assert existing_ema_models(MODEL, [0.07]) == {}
    files = [EMAModelFiles(MODEL, [NARROW]).file(Cell(steps, 0.0, ema=0.07)) for steps in (2, 3, 4)]
    assert (made, len(set(files))) == ([0.07], 1)
    assert existing_ema_models(MODEL, [0.07, 0.2]) == {0.07: files[0]}
    whole = bytearray(files[0].read_bytes())
    files[0].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert EMAModelFiles(MODEL, [NARROW]).file(NARROW).read_bytes() == whole
    assert made == [0.07, 0.07]


def test_another_snapshot_makes_another_model(trained: Path) -> None:
    before = EMAModelFiles(MODEL, [NARROW]).file(NARROW)
    said = artefact_of(spec_of(), step=8, ema_sigma_rel=0.1)
    save_artefact(snapshot_path(AVERAGES, 0.1, 8), network_of(spec_of(), seed=99).state_dict(), said)
    after = EMAModelFiles(MODEL, [NARROW]).file(NARROW)
    assert read_artefact(before).model_sha256 != read_artefact(after).model_sha256
    assert existing_ema_models(MODEL, [0.07]) == {0.07: after}


def test_what_is_missing_or_of_another_training_is_refused_before_anything_is_made(trained: Path) -> None:
    save_artefact(MODEL, network_of(spec_of()).state_dict(), artefact_of(spec_of(), step=9))
    with pytest.raises(UsageError, match=r"models/ema has snapshots of another training than models/model"):
        EMAModelFiles(MODEL, [PLAIN, WIDE])
    assert existing_ema_models(MODEL, [0.2]) == {}
    assert EMAModelFiles(MODEL, [PLAIN]).file(PLAIN) == MODEL, "who asks for no width needs none"
    for path in AVERAGES.iterdir():
        path.unlink()
    with pytest.raises(UsageError, match="models/ema has no snapshots of averages"):
        EMAModelFiles(MODEL, [PLAIN, WIDE])
    assert not EMA_RUNS.exists()
