import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cli import main
from diffusion.evaluate import adhoc
from diffusion.evaluate.adhoc import evaluate_pair
from diffusion.evaluate.features.reference import make_reference
from diffusion.evaluate.open_images import open_images
from diffusion.evaluate.pair import open_pair
from diffusion.images.store import open_store, write_store
from diffusion.protocol.grid import Cell
from diffusion.protocol.scores import as_values
from diffusion.system.errors import DiffctlError, DiffctlWarning, UsageError
from tests.conftest import diffctl
from tests.helpers.digits_sweep import (
    ONE_CELL,
    make_config,
    rewrite,
    score_sweep,
    tamper,
    write_cell,
    write_prepared,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project with prepared data, its reference, and a cell's samples as a store, an npz and png files."""
    root, config = tmp_path_factory.mktemp("any-images"), make_config()
    write_prepared(root / "prepared")
    make_reference(config.evaluate, root / "prepared", root / "data/reference")
    store = write_cell(root / "samples/steps50-eta0", config, Cell(50, 0.0))
    np.savez(root / "cell.npz", store.images, store.labels)
    (root / "folder").mkdir()
    for index, image in enumerate(store.images):
        Image.fromarray(image[:, :, 0]).save(root / f"folder/{index:03d}.png")
    return root


def scored(path, against, split="train", **options):
    """The scores document of any images."""
    return evaluate_pair(open_pair(Path(path), Path(against), split), **options)


@pytest.fixture(scope="module")
def cell(root):
    """The scores document of the cell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return scored(root / "samples/steps50-eta0", root / "prepared")


@pytest.fixture(autouse=True)
def project(root, tmp_path, monkeypatch):
    """The project as working directory: data/reference is found, and no features that another test kept."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("DIFFCTL_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["cell.npz", "folder"])
def test_a_folder_and_an_npz_score_like_a_store(root, cell, name):
    document = scored(root / name, root / "prepared")
    assert document["scores"] == pytest.approx(cell["scores"], rel=1e-6)
    assert document["reference"] == cell["reference"]
    assert document["images"]["count"] == 60


def test_a_cell_scores_as_in_its_sweep(root, cell):
    swept = score_sweep(make_config(sweep=ONE_CELL), root / "samples", root / "data/reference")
    assert cell["scores"] == swept.cells["steps50-eta0"].scores
    assert cell["card"] == swept.cells["steps50-eta0"].card
    assert cell["reference"] == as_values(swept)["reference"]


def test_the_stored_reference_is_used_unless_it_is_stale(root, tmp_path, cell):
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


def test_a_second_call_costs_the_scores_alone(root):
    seen = []
    first = scored("cell.npz", "prepared/train", progress=lambda *numbers: seen.append(numbers))
    assert seen[-1] == (180, 180)
    seen.clear()
    assert scored("cell.npz", "prepared/train", progress=lambda *numbers: seen.append(numbers)) == first
    assert scored("folder", "prepared/train", progress=lambda *numbers: seen.append(numbers))
    assert (seen[0], seen[-1]) == ((0, 60), (60, 60))


def test_any_images_can_be_the_reference_without_a_floor():
    document = scored("folder", "folder")
    assert "floor" not in document["scores"]
    assert "excess" not in document["scores"]
    assert abs(document["scores"]["fd_effnet_lite0_64"]) < 1e-2


def test_the_other_split_can_be_the_reference():
    document = scored("cell.npz", "prepared", split="test")
    assert (document["reference"]["reference_count"], document["reference"]["heldout_count"]) == (64, 120)


def test_images_of_another_size_are_refused(root, tmp_path):
    larger = np.zeros((4, 16, 16, 1), np.uint8)
    write_store(tmp_path / "larger", larger, None, {"name": "larger"})
    with pytest.raises(DiffctlError, match="16×16"):
        open_pair(tmp_path / "larger", root / "prepared")


@pytest.mark.parametrize("few", [0, 1])
@pytest.mark.parametrize("form", ["npz", "store", "folder"])
def test_fewer_than_two_images_are_refused_on_either_side(root, tmp_path, few, form):
    images, path = np.zeros((few, 8, 8, 1), np.uint8), tmp_path / f"few.{form}"
    if form == "npz":
        np.savez(path, images)
    elif form == "store":
        write_store(path, images, None, {"name": "few"})
    else:
        path.mkdir()
        for image in images:
            Image.fromarray(image[:, :, 0]).save(path / "a.png")
    for pair in ((path, root / "prepared"), (root / "cell.npz", path)):
        with pytest.raises(DiffctlError, match=rf"{path.name} has (no images|{few})"):
            open_pair(*pair)


def test_what_cannot_be_scored_is_refused_before_anything_heavy_is_loaded(root, tmp_path):
    """The command ends with its sentence, and torch was not imported."""
    np.savez(tmp_path / "one.npz", np.zeros((1, 8, 8, 1), np.uint8))
    code = (
        "import sys; from cli import main; code = 0\n"
        "try: main.main()\n"
        "except SystemExit as end: code = end.code\n"
        "assert not {'torch', 'sklearn'} & set(sys.modules), 'something heavy'; sys.exit(code)"
    )
    arguments = ["evaluate", str(tmp_path / "one.npz"), "--against", "prepared"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stderr == f"diffctl: scores need at least 2 images, and {tmp_path}/one.npz has 1\n"
    assert done.returncode == 1


def test_a_folder_of_mixed_sizes_names_the_file(tmp_path):
    for name, size in (("a.png", (8, 8)), ("b.png", (9, 9))):
        Image.new("L", size).save(tmp_path / name)
    with pytest.raises(DiffctlError, match=r"b\.png is 9×9, and a\.png is 8×8"):
        open_images(tmp_path)


def test_a_truncated_image_is_named(tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)).save(tmp_path / name)
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DiffctlError, match=r"b\.png"):
        open_images(tmp_path)


def test_lossy_images_are_warned_of(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    with pytest.warns(DiffctlWarning, match="1 of the images"):
        assert open_images(tmp_path).images.shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"other": np.zeros((2, 8, 8, 1), np.uint8)}, "no arr_0"),
        ({"arr_0": np.zeros((2, 8, 8, 1), np.float32)}, "want uint8"),
        ({"arr_0": np.zeros((2, 8, 8), np.uint8)}, "want uint8"),
        ({"arr_0": np.zeros((2, 8, 8, 1), np.uint8), "arr_1": np.zeros(3, int)}, "one label"),
    ],
)
def test_an_npz_that_does_not_fit_is_explained(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DiffctlError, match=words):
        open_images(tmp_path / "x.npz")


def test_what_is_no_npz_is_explained(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DiffctlError, match="no whole zip or npz"):
        open_images(tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(DiffctlError, match="no whole zip or npz"):
        open_images(tmp_path / "x.npy")


def test_nothing_to_open_is_a_wrong_use(tmp_path, root):
    for path, words in (
        (tmp_path / "none", "there is no"),
        (tmp_path, "has no images"),
        (root / "prepared", "two splits"),
    ):
        with pytest.raises(UsageError, match=words):
            open_images(path)


@pytest.mark.slow
def test_the_command_prints_json_that_a_script_reads(root, cell):
    done = diffctl(root, "evaluate", "samples/steps50-eta0", "--against", "prepared", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    parts = {"images", "extractor", "reference", "intervals", "scores", "errors", "classes", "card"}
    assert set(document) == parts
    assert document["card"] == cell["card"]
    assert document["scores"] == pytest.approx(cell["scores"], rel=1e-3)


def test_the_command_prints_a_table():
    printed = CliRunner().invoke(main.app, ["evaluate", "cell.npz", "--against", "prepared"]).stdout
    for words in ("fd_effnet_lite0_64", "60 images", "real, held out", "120 images of digits (train)"):
        assert words in printed


TWO = ["--extractor", "effnet-lite0-64", "--extractor", "effnet-lite0-96"]


def run(*arguments):
    return CliRunner().invoke(main.app, ["evaluate", *map(str, arguments)])


@pytest.mark.slow
def test_several_extractors_are_one_document_of_what_each_says_alone():
    limits = ["--prc-images", 50, "--prc-samples", 40, "--json"]
    both = json.loads(run("cell.npz", "--against", "prepared", *TWO, *limits).stdout)
    beside = both.pop("spaces")
    options = {"prc_images": 50, "prc_samples": 40}
    assert both == scored("cell.npz", "prepared", **options)
    alone = scored("cell.npz", "prepared", extractor="effnet-lite0-96", **options)
    assert beside == {
        "effnet-lite0-96": {name: alone[name] for name in alone.keys() - {"images", "extractor", "intervals"}}
    }
    card = both["card"]
    assert (card["prc_images"], card["prc_reference_images"]) == (40, 50)


def test_several_extractors_are_one_table_whose_names_differ():
    printed = run("cell.npz", "--against", "prepared", *TWO).stdout
    names = [line.split()[0] for line in printed.splitlines() if line.strip()]
    assert len(names) == len(set(names) - {"against"}) + names.count("against")
    assert {"excess", "excess_effnet_lite0_96", "memorisation_effnet_lite0_96"} < set(names)
    assert names.count("against") == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([*TWO, "--extractor", "effnet-lite0-64"], "effnet-lite0-64 is given twice"),
        (
            ["--extractor", "dinov2-vit-l14", "--extractor", "inception-v3-compat", "--weights", "x"],
            "dinov2-vit-l14 and inception-v3-compat are several",
        ),
        (
            ["--extractor", "inception-v3-compat", *TWO[:2], "--weights", "none"],
            "no file with weights at none",
        ),
    ],
)
def test_extractors_that_cannot_be_asked_are_refused_before_any_work(options, words):
    error = run("cell.npz", "--against", "prepared", *options).exception
    assert isinstance(error, UsageError)
    assert words in str(error)


def test_what_a_further_extractor_lacks_is_said_before_the_first_one_works(monkeypatch):
    monkeypatch.setattr(adhoc, "kept_features", lambda *_: pytest.fail("it worked"))
    options = [*TWO[:2], "--extractor", "inception-v3-spatial", "--weights", "none"]
    error = run("cell.npz", "--against", "prepared", *options).exception
    assert "no file with weights at none" in str(error)


@pytest.mark.parametrize("value", [0, 100_001])
@pytest.mark.parametrize("option", ["--prc-images", "--prc-samples"])
def test_the_limits_of_neighbours_have_limits(option, value):
    assert run("cell.npz", "--against", "prepared", option, value).exit_code == 2


def test_the_command_writes_scores_and_card_into_a_file(tmp_path):
    out = tmp_path / "kept/scores.json"
    arguments = ["evaluate", "cell.npz", "--against", "prepared", "--out", str(out)]
    assert json.loads(CliRunner().invoke(main.app, [*arguments, "--json"]).stdout) == json.loads(
        out.read_text()
    )
    idle = CliRunner().invoke(main.app, ["evaluate", "--paper", "ddim", "--out", str(out)])
    assert "--out" in str(idle.exception)
    nowhere = CliRunner().invoke(main.app, [*arguments[:-1], str(tmp_path)])
    assert "is a folder" in str(nowhere.exception)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_command_notices_a_real_image_edited_in_place(root, tmp_path, monkeypatch, split):
    """The stored reference fits the digests; only the pixels tell that it is stale."""
    shutil.copytree(root / "prepared", tmp_path / "data/prepared")
    shutil.copytree(root / "data/reference", tmp_path / "data/reference")
    monkeypatch.chdir(tmp_path)
    tamper(tmp_path / "data/prepared" / split)
    done = CliRunner().invoke(main.app, ["evaluate", str(root / "cell.npz"), "--against", "data/prepared"])
    assert f"data/prepared/{split} changed after they were written" in str(done.exception)
