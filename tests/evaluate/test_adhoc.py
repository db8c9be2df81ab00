"""Scores of ad-hoc images: folders, npz files and stores against each other or a prepared data set."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cli import main
from diffusion.evaluate import adhoc
from diffusion.evaluate.adhoc import open_images, open_inputs, score_images
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.images.store import open_store
from diffusion.protocol.grid import Cell
from diffusion.protocol.scores_document import document_values
from diffusion.system.errors import DiffctlError, DiffctlWarning, UsageError
from tests.helpers.digits_sweep import ONE_CELL, make_config, rewrite, score_sweep, write_cell, write_prepared


@pytest.fixture(scope="module")
def root(tmp_path_factory, real):
    """A project with prepared data, a reference, and a cell's samples as store, npz and PNG files."""
    root, config = tmp_path_factory.mktemp("any-images"), make_config()
    shutil.copytree(real / "prepared", root / "prepared")
    shutil.copytree(real / "reference", root / "data/reference")
    store = write_cell(root / "samples/steps50-eta0", config, Cell(steps=50, eta=0.0))
    np.savez(root / "cell.npz", store.images, store.labels)
    (root / "folder").mkdir()
    for index, image in enumerate(store.images):
        Image.fromarray(image[:, :, 0]).save(root / f"folder/{index:03d}.png")
    return root


def scored(path, against, split=None, progress=None, **options):
    """Return the scores document."""
    inputs = open_inputs(Path(path), Path(against), split)
    return score_images(inputs, EvaluateConfig(**options), progress)


@pytest.fixture(scope="module")
def cell(root):
    """Return the scores document of the cell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return scored(root / "samples/steps50-eta0", root / "prepared")


@pytest.fixture(autouse=True)
def project(root, tmp_path, monkeypatch):
    """Change to the project and use an empty feature cache."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("DIFFCTL_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cell.npz", "folder"])
def test_folder_and_npz_score_like_a_store(root, cell, name):
    document = scored(root / name, root / "prepared")
    assert document["scores"] == pytest.approx(cell["scores"], rel=1e-6)
    assert document["reference"] == cell["reference"]
    assert document["images"]["count"] == 60


@pytest.mark.slow
def test_cell_scores_equal_those_of_the_sweep(root, cell):
    swept = score_sweep(make_config(sweep=ONE_CELL), root / "samples", root / "data/reference")
    assert cell["scores"] == swept.cells["steps50-eta0"].scores
    assert cell["card"] == swept.cells["steps50-eta0"].card
    assert cell["reference"] == document_values(swept)["reference"]


@pytest.mark.slow
def test_stored_reference_is_used_unless_stale(root, tmp_path, cell):
    seen = []
    scored("cell.npz", root / "prepared", progress=lambda *numbers: seen.append(numbers))
    assert (seen[0], seen[-1]) == ((0, 60), (60, 60))
    prepared = write_prepared(tmp_path / "prepared")
    rewrite(prepared / "train")
    seen.clear()
    document = scored("cell.npz", prepared, progress=lambda *numbers: seen.append(numbers))
    assert (seen[0], seen[-1]) == ((0, 184), (184, 184))  # of the sample they were kept
    assert seen == sorted(seen)
    assert document["reference"]["reference_digest"] == open_store(prepared / "train").digest
    assert document["reference"]["reference_digest"] != cell["reference"]["reference_digest"]


@pytest.mark.slow
def test_reference_without_held_out_images_has_no_floor():
    document = scored("folder", "folder")
    assert "floor" not in document["scores"]
    assert "excess" not in document["scores"]
    assert abs(document["scores"]["fd_effnet_lite0_64"]) < 1e-2


IMAGES = np.zeros((2, 8, 8, 1), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": IMAGES}, "has no arr_0"),
        ({"arr_0": IMAGES.astype(np.float32)}, "arr_0 is float32"),
        ({"arr_0": IMAGES[..., 0]}, "arr_0 is uint8"),
        ({"arr_0": IMAGES, "arr_1": np.zeros(3, int)}, "arr_1 has 3 labels"),
        ({"arr_0": IMAGES[:1]}, "at least 2 images, and .* has 1"),
    ],
)
def test_unfit_npz_is_refused_on_either_side(root, tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    for pair in ((tmp_path / "x.npz", root / "prepared"), (root / "cell.npz", tmp_path / "x.npz")):
        with pytest.raises(DiffctlError, match=message):
            open_inputs(*pair)


def draw(path, size=8):
    """Write a grey picture of noise."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size), np.uint8)).save(path)


def test_files_that_cannot_be_used_are_named(tmp_path, root):
    for path in (tmp_path / "none", tmp_path, root / "prepared"):
        with pytest.raises(UsageError):
            open_images(path)
    draw(tmp_path / "a.jpg")
    with pytest.warns(DiffctlWarning, match="1 of the images"):
        assert open_images(tmp_path).images.shape == (1, 8, 8, 3)
    (tmp_path / "a.jpg").rename(tmp_path / "x.npz")
    with pytest.raises(DiffctlError, match=r"x\.npz"):
        open_images(tmp_path / "x.npz")
    Image.new("L", (8, 9)).save(tmp_path / "a.png")
    assert open_images(tmp_path).images.shape == (1, 9, 8, 3)
    draw(tmp_path / "a.png", 32)
    draw(tmp_path / "b.png", 9)
    with pytest.raises(DiffctlError, match=r"b\.png has 9×9 pixels, and a\.png 32×32 pixels"):
        open_images(tmp_path)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    with pytest.raises(DiffctlError, match=r"b\.png"):
        open_images(tmp_path)
    (tmp_path / "b.png").rename(tmp_path / "b.tiff")
    with pytest.raises(DiffctlError, match=r"1 not png, jpeg, webp or gif \(b\.tiff\)"):
        open_images(tmp_path)


TWO = ["--extractor", "effnet-lite0-64", "--extractor", "effnet-lite0-96"]


def run(*arguments):
    return CliRunner().invoke(main.app, ["evaluate", *map(str, arguments)])


@pytest.mark.slow
def test_several_extractors_equal_single_runs():
    limits = ["--prc-images", 50, "--prc-samples", 40, "--json"]
    both = json.loads(run("cell.npz", "--against", "prepared", *TWO, *limits).stdout)
    spaces, options = both.pop("spaces"), {"prc_images": 50, "prc_samples": 40}
    assert both == scored("cell.npz", "prepared", **options)
    alone = scored("cell.npz", "prepared", extractor="effnet-lite0-96", **options)
    assert spaces == {
        "effnet-lite0-96": {name: alone[name] for name in alone.keys() - {"images", "extractor", "intervals"}}
    }
    card = both["card"]
    assert (card["prc_images"], card["prc_reference_images"]) == (40, 50)


@pytest.mark.parametrize(
    "options",
    [
        ["--extractor", "dinov2-vit-l14", "--extractor", "inception-v3-compat", "--weights", "x"],
        ["--extractor", "inception-v3-compat", *TWO[:2], "--weights", "none"],
        [*TWO[:2], "--extractor", "inception-v3-spatial", "--weights", "none"],
    ],
    ids=["one file for two", "no weights", "no weights for the second"],
)
def test_unusable_extractors_are_refused_before_any_work(monkeypatch, options):
    monkeypatch.setattr(adhoc, "cached_features", lambda *_: pytest.fail("features were extracted"))
    assert isinstance(run("cell.npz", "--against", "prepared", *options).exception, UsageError)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["cell.npz", "--against", "folder", "--split", "train"],
            "--split has no effect: folder has",
        ),
        (["cell.npz", "--against", "mean.npz", "--split", "test"], "--split has no effect on statistics"),
        (["cell.npz", "--against", "mean.npz", "--prc-images", "9"], "--prc-images has no effect on stat"),
        (["cell.npz", "--against", "mean.npz", "--kid-subset-size", "9"], "without images (arr_0)"),
        (["--paper", "ddim", "--split", "train"], "--split has no effect without PATH"),
        (["--paper", "ddim", "--extractor", "effnet-lite0-64"], "--extractor has no effect without PATH"),
        (["--paper", "ddim", "--out", "x.json"], "--out has no effect without PATH"),
    ],
)
def test_options_without_an_effect_are_refused(arguments, words, root):
    np.savez(root / "mean.npz", mu=np.zeros(1280), sigma=np.eye(1280))
    refused = run(*arguments).exception
    assert isinstance(refused, UsageError)
    assert words in str(refused)


@pytest.mark.slow
def test_command_prints_a_table_and_writes_scores_and_card(tmp_path):
    out = tmp_path / "kept/scores.json"
    printed = run("cell.npz", "--against", "prepared", "--out", out).stdout
    for words in ("fd_effnet_lite0_64", "60 images", "real, held out", "120 images of digits (train)"):
        assert words in printed
    printed = run("cell.npz", "--against", "prepared", "--json").stdout
    assert json.loads(printed) == json.loads(out.read_text())
    assert "is a folder" in str(run("cell.npz", "--against", "prepared", "--out", tmp_path).exception)
