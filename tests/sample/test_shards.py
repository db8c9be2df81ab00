"""Sampling in shards: images do not depend on batches, processes, interruptions or extended grids."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.check.dependency_checks import check_samples
from diffusion.check.findings import Project
from diffusion.config import Config
from diffusion.images.store import Images, ImageStore
from diffusion.layout import MARK, MODEL, SAMPLES
from diffusion.model.model_file import LoadedModel
from diffusion.protocol.card import differing_fields
from diffusion.protocol.grid import SAMPLING_VERSION, cell_settings, grid
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.cell_images import CellShards, LocalRunner, make_cell
from diffusion.sample.network_files import CellFiles, NetworkFiles, Recipe, load_network
from diffusion.system import devices
from diffusion.system.errors import DiffctlError, DiffctlWarning
from diffusion.system.locks import is_held
from flows.sweep_cells import run_sweep
from tests.conftest import command, diffctl, environment
from tests.helpers.damaged_bytes import Damage, damages
from tests.helpers.networks import cell_images, small_model, with_model
from tests.helpers.waiting import wait_until

PIXEL = (1, 1, 1)
SHARDS = [range(0, 4), range(4, 8), range(8, 12)]


def index_images(shard: range) -> Images:
    """Return images of one pixel with the image's index as its value."""
    return np.array(shard, dtype=np.uint8).reshape(-1, *PIXEL)


def three_shards(folder: Path) -> CellShards:
    shards = CellShards(folder, 12, PIXEL)
    for shard in SHARDS:
        shards.save(shard, index_images(shard))
    return shards


def saved_images(shards: CellShards) -> list[int]:
    found: list[int] = np.concatenate(list(shards.images())).ravel().tolist()
    return found


def shard_path(folder: Path, shard: range) -> Path:
    return folder / f"{shard.start:08d}-{shard.stop:08d}.npy"


@given(st.data())
def test_missing_shards_cover_each_image_once_and_are_read_in_order(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 40))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(data.draw(st.integers(1, 3))):  # interrupted runs, other batch sizes and totals
            some = CellShards(folder, data.draw(st.integers(1, 40)), PIXEL)
            left = some.missing(data.draw(st.integers(1, 15)))
            for shard in data.draw(st.permutations(left))[: data.draw(st.integers(0, len(left)))]:
                some.save(shard, index_images(shard))
        size, shards = data.draw(st.integers(1, 15)), CellShards(folder, total, PIXEL)
        left = shards.missing(size)
        assert all(0 < len(shard) <= size for shard in left)
        for shard in left:
            shards.save(shard, index_images(shard))
        assert not shards.missing(size)
        assert saved_images(shards) == list(range(total))


@given(damage=damages(), target=st.sampled_from(SHARDS))
def test_damaged_shard_gives_a_warning_and_is_made_again(damage: Damage, target: range) -> None:
    with tempfile.TemporaryDirectory() as name:
        shards, path = three_shards(Path(name)), shard_path(Path(name), target)
        original = path.read_bytes()
        path.write_bytes(damage(original))
        changed = path.read_bytes() != original
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            left = shards.missing(4)
        assert left == [target] * changed
        assert [f"{path} is damaged (" in str(warning.message) for warning in caught] == [True] * changed
        assert path.with_name(f"damaged-{path.name}").exists() == changed
        for shard in left:
            shards.save(shard, index_images(shard))
        assert saved_images(shards) == list(range(12))


@pytest.mark.parametrize(
    ("name", "shard", "images"),
    [
        ("00000004-00000008", range(8, 12), index_images(range(8, 12))),  # under another name
        ("00000004-00000008", range(4, 8), np.zeros((4, 2, 1, 1), np.uint8)),
        ("00000004-00000008", range(4, 8), np.zeros((3, 1, 1, 1), np.uint8)),
        ("00000004-00000008", range(4, 8), np.zeros((4, 1, 1, 1), np.int8)),
        ("00000004-00000008", range(4, 8), np.zeros((999, 9, 9, 9), np.uint8)),
        ("00000004-999999999999", range(4, 999999999999), np.zeros((4, 1, 1, 1), np.uint8)),
    ],
)
def test_shard_that_contradicts_its_name_is_made_again(tmp_path, name, shard, images) -> None:
    shards = three_shards(tmp_path)
    shard_path(tmp_path, range(4, 8)).unlink()
    shards.save(shard, images)
    shard_path(tmp_path, shard).rename(tmp_path / f"{name}.npy")
    with pytest.warns(DiffctlWarning, match=f"{name}.npy is damaged .*it is renamed"):
        left = shards.missing(4)
    assert left == ([range(4, 8)] if shard.start == 4 else [range(4, 8), range(8, 12)])
    assert (tmp_path / f"damaged-{name}.npy").exists()


def test_shard_of_another_cell_is_made_again(tmp_path: Path) -> None:
    """The checksum covers the folder's name, which is a fingerprint of the card and the code."""
    one, other = three_shards(tmp_path / "one"), three_shards(tmp_path / "other")
    shutil.copy(shard_path(one.folder, range(4, 8)), other.folder)
    with pytest.warns(DiffctlWarning, match="its checksum does not match"):
        assert other.missing(4) == [range(4, 8)]


def test_overlapping_shards_and_foreign_files_have_no_effect(tmp_path: Path) -> None:
    shards = three_shards(tmp_path)
    for more in (range(1, 7), range(6, 20), range(20, 24), range(3, 4)):
        shards.save(more, index_images(more))
    for name in ("notes.npy", "4-8.npy", "00000008-00000004.npy", "-00000001-00000004.npy", "readme"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "folder.npy").mkdir()
    assert shards.missing(4) == []
    assert saved_images(shards) == list(range(12))
    assert (tmp_path / "notes.npy").read_text() == "mine"


@pytest.mark.slow
def test_sweep_resumes_from_finished_shards_after_sigkill(project: Path) -> None:
    sections = {"sample": {"num_images": 40, "batch_size": 4}, "sweep": {"steps": [20], "eta": [0.0, 1.0]}}
    with_model(project, **sections)
    stage = command("stage", "sample")
    process = subprocess.Popen(stage, cwd=project, env=environment(), start_new_session=True)
    wait_until(lambda: len(shard_files(project)) >= 3, 60)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in shard_files(project)}
    assert 3 <= len(kept) < 20
    assert diffctl(project, "stage", "sample").returncode == 0
    assert len(shard_files(project)) == 20
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished shards are not made again"

    other = project / "other"
    shutil.copytree(project / MARK.parent, other / MARK.parent)
    with_model(other, **sections)
    assert diffctl(other, "stage", "sample").returncode == 0
    expected = cell_images(other)
    for name, images in cell_images(project).items():
        assert np.array_equal(images, expected[name])


def shard_files(project: Path) -> list[Path]:
    return sorted((project / "runs/cells").glob("*/*/*.npy"))


def make_cells(config: Config, made: list[SampleSettings]) -> list[ImageStore]:
    """Make every cell of the grid. `made` receives the settings once for each shard that is not reused."""

    def runner(recipe, shards):
        made.extend([recipe.settings] * len(shards))
        yield from local(recipe, shards)

    cells, sample, files = grid(config.sample, config.sweep), config.sample, NetworkFiles(MODEL)
    with LocalRunner() as local:
        return [make_cell(sample, cell, files, SAMPLES / cell.name, run=runner) for cell in cells]


def test_extended_grid_makes_only_its_new_cells(project: Path) -> None:
    sample = {"num_images": 10, "batch_size": 8}
    made: list[SampleSettings] = []
    make_cells(with_model(project, sample=sample, sweep={"steps": [2]}), made)
    assert len(made) == 2 * 2
    make_cells(with_model(project, sample=sample, sweep={"steps": [2, 3]}), made)
    assert {settings.steps for settings in made[4:]} == {3}
    assert len(cell_images(project)) == 4


def test_model_that_is_replaced_during_a_sweep_makes_its_own_cells_only(project: Path) -> None:
    config = with_model(project, sample={"num_images": 4}, sweep={"steps": [2, 3], "eta": [0.0]})
    files, (first, second) = NetworkFiles(MODEL), grid(config.sample, config.sweep)
    with LocalRunner() as run:
        make_cell(config.sample, first, files, SAMPLES / first.name, run=run)
        recipe = Recipe.read(cell_settings(config.sample, second), files)
        small_model(MODEL, seed=1)
        store = make_cell(config.sample, second, files, SAMPLES / second.name, run=run)
        with pytest.raises(DiffctlError, match="the file of the model was replaced"):
            list(run(recipe, [range(4)]))
    shutil.rmtree("runs")
    again = make_cell(config.sample, second, files, Path("again"))
    assert np.array_equal(store.images, again.images)
    assert store.meta["card"] == again.meta["card"]
    (finding,) = check_samples(Project(config))
    assert finding.message == f"the images in {SAMPLES / first.name} are of another training than {MODEL}"


@pytest.mark.parametrize(
    ("changed", "place", "value"),
    [
        ("sampling_version", "diffusion.protocol.grid.SAMPLING_VERSION", SAMPLING_VERSION + 1),
        ("sampling_torch", "diffusion.sample.sampling_card.torch_version", lambda: "another"),
    ],
)
def test_shards_of_another_code_version_are_made_again(project, monkeypatch, changed, place, value) -> None:
    config = with_model(project, sample={"num_images": 4}, sweep={"steps": [5], "eta": [1.0]})
    made: list[SampleSettings] = []
    stores = [*make_cells(config, made), *make_cells(config, made)]
    assert len(made) == 1
    monkeypatch.setattr(place, value)
    stores += make_cells(config, made)
    assert len(made) == 2
    assert set(differing_fields([store.meta["card"] for store in stores])) == {changed}


def test_workers_of_a_sweep_share_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = {f"GPU-{index}": torch.device("cuda", index) for index in range(2)}
    monkeypatch.setattr(devices, "LOCK_DIR", tmp_path)
    monkeypatch.setattr(devices, "_gpus", lambda: gpus)
    acquire = devices.acquire_device
    with acquire(group="ours") as one, acquire(group="ours") as same, acquire() as other:
        assert one == same != other


def test_sweep_holds_its_device_while_weights_are_loaded(project, monkeypatch) -> None:
    """The device is a CPU that counts as a GPU."""
    monkeypatch.setattr(devices, "LOCK_DIR", project)
    monkeypatch.setattr(devices, "_gpus", lambda: {"GPU-a": torch.device("cpu")})
    fake_gpu = project / "GPU-a.lock"
    config = with_model(project, sample={"num_images": 8, "batch_size": 4}, sweep={"steps": [2, 3]})
    loaded_networks, states = weakref.WeakSet(), []

    def load(kind: str, *arguments: object) -> LoadedModel:
        loaded = load_network(kind, *arguments)
        loaded_networks.add(loaded.network)
        return loaded

    def record(done: int, total: int) -> None:
        states.append((len(loaded_networks), is_held(fake_gpu)))

    monkeypatch.setattr("diffusion.sample.cell_images.load_network", load)

    def sweep() -> None:
        cells = grid(config.sample, config.sweep)
        models = CellFiles(MODEL, config.sample, cells)
        run_sweep(config.sample, cells, models, SAMPLES, lambda label: contextlib.nullcontext(record))

    sweep()
    assert len(cell_images(project)) == 4
    assert set(states) == {(0, False), (1, True)}
    assert states.count((0, False)) == 1, "before the first shard; the weights are loaded once"
    assert (len(loaded_networks), is_held(fake_gpu)) == (0, False)
    sweep()
    assert len(loaded_networks) == 0, "finished cells need no device"
