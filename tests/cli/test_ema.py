"""`diffctl ema`: model files of widths, what is said of them, and mistakes in a sentence before any work."""

import json
import sys
from pathlib import Path

import pytest
import torch

from cli import main
from diffusion.model.model_file import load_model, read_artefact, save_artefact
from diffusion.model.snapshots import Snapshots, snapshot_file
from tests.helpers.networks import artefact_of, network_of, spec_of

WIDTHS, STEPS = (0.05, 0.1), (4, 8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the snapshots of a training of 8 steps."""
    monkeypatch.chdir(tmp_path)
    spec = spec_of()
    for number, (width, step) in enumerate([(width, step) for width in WIDTHS for step in STEPS]):
        said = artefact_of(spec, step=step, ema_width=width)
        weights = network_of(spec, seed=number).state_dict()
        save_artefact(snapshot_file(tmp_path / "models/ema", width, step), weights, said)
    return tmp_path


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["diffctl", "ema", *arguments])
    with pytest.raises(SystemExit) as end:
        main.main()
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


def made(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("ema-*"))


def test_each_width_is_a_model_file_that_says_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capsys, monkeypatch, "--width", "0.2,0.1,0.2")
    assert code == 0
    assert made(folder) == ["ema-0.1.safetensors", "ema-0.2.safetensors"]
    assert out.startswith("from 4 snapshots of 0.05, 0.1 in models/ema:\n")
    assert "width 0.1: models/ema-0.1.safetensors, its profile missed by 0.00%" in out
    tracked = load_model(snapshot_file(folder / "models/ema", 0.1, 8))
    network, said = load_model(folder / "models/ema-0.1.safetensors")
    assert said == tracked.artefact, "a width that was tracked is its own last snapshot"
    for name, value in tracked.network.state_dict().items():
        assert torch.allclose(network.state_dict()[name], value, rtol=1e-6, atol=1e-7), name
    assert read_artefact(folder / "models/ema-0.2.safetensors").ema_width == 0.2


def test_it_is_said_to_a_script(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capsys, monkeypatch, "-w", "0.15", "--from", "models/ema", "-o", "other", "--json")
    assert code == 0
    (model,) = json.loads(out)
    artefact = read_artefact(folder / "other/ema-0.15.safetensors")
    assert model == {
        "width": 0.15,
        "out": "other/ema-0.15.safetensors",
        "model_sha256": artefact.model_sha256,
        "step": 8,
        "error": pytest.approx(Snapshots.of(folder / "models/ema").fit(0.15).error),
    }


@pytest.mark.parametrize(
    "width", ["", "0", "0.005", "0.3", "-0.1", "nan", "inf", "wide", "0.1,,0.2", "0.1;0.2"]
)
def test_what_is_no_width_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    code, out, said = run(capsys, monkeypatch, f"--width={width}")
    assert (code, out) == (2, "")
    assert said == f"diffctl: --width {width}: give widths from 0.01 to 0.28, a comma between them\n"
    assert made(folder) == []


def test_a_place_that_takes_no_files_is_told_before_a_snapshot_is_read(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("")
    code, _, said = run(capsys, monkeypatch, "--width", "0.1", "--from", "nowhere", "--out", "file/models")
    assert code == 2
    assert said.startswith("diffctl: --out file/models/ema-0.1.safetensors")
    assert said.count("\n") == 1


def test_snapshots_that_are_not_there_or_of_two_trainings_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, said = run(capsys, monkeypatch, "--width", "0.1", "--from", "nowhere")
    assert code == 2
    assert said == (
        "diffctl: nowhere has no snapshots of averages: set train.averages, train, or `dvc pull` them\n"
    )
    spec = spec_of(channels=16)
    other = artefact_of(spec, step=8, ema_width=0.2)
    save_artefact(snapshot_file(folder / "models/ema", 0.2, 8), network_of(spec).state_dict(), other)
    code, _, said = run(capsys, monkeypatch, "--width", "0.1")
    assert code == 2
    assert "are of two trainings: keep a folder for each" in said
    assert made(folder) == []


def test_a_damaged_snapshot_is_a_failure(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = snapshot_file(folder / "models/ema", 0.1, 4)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, _, said = run(capsys, monkeypatch, "--width", "0.1")
    assert code == 1
    assert "0.1-000000004.safetensors is damaged" in said
    assert made(folder) == []
