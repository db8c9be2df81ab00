"""`diffctl edit`: inputs of each kind, what the picture shows, and refusals."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.images.store import open_store, write_store
from diffusion.layout import MODEL
from tests.helpers.invoke import Result, assert_refused
from tests.helpers.networks import edm_model, small_model

CLASSES = [f"class{i}" for i in range(10)]
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)


@pytest.fixture
def edit(project: Path, invoke) -> Callable[..., Result]:
    """Run `diffctl edit` with a model of 8×8 grey pixels, pictures and masks in the folder."""
    small_model(MODEL)
    for path, pixels in (
        ("a.png", PIXELS[0]),
        ("many/class3/b.png", PIXELS[1]),
        ("many/other/c.png", PIXELS[2]),
    ):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[:, :, 0]).save(path)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 5:] = 255
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(np.dstack([PIXELS[0], 255 - mask]), "LA").save("alpha.png")
    Image.fromarray(PIXELS[0, :, :, 0]).resize((30, 20)).save("wide.png")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (15, 13), np.uint8)).save("odd.png")
    write_store(Path("store"), PIXELS, np.array([3, 5, 7]), {"classes": CLASSES, "name": "some"})

    def run(*arguments: str) -> Result:
        done = invoke("edit", *arguments, "--steps", "3")
        assert done.code == 0, done.err
        return done

    return run


def results(path: str = "x.npz") -> np.ndarray:
    images: np.ndarray = np.load(path)["arr_0"]
    return images


@pytest.mark.slow
def test_masks_of_each_kind_keep_the_same_pixels(edit) -> None:
    for mask in ("mask.png", "5,0,8,8"):
        edit("a.png", "--mask", mask, "--num", "2", "--out", "x.npz")
        assert results().shape == (2, 8, 8, 1)
        assert np.array_equal(results()[:, :, :5], PIXELS[[0, 0], :, :5])
        assert not np.array_equal(results()[0], results()[1])
    masked = results()
    edit("alpha.png", "--mask", "alpha", "--num", "2", "--out", "x.npz")
    assert np.array_equal(results(), masked)


def test_picture_shows_input_measurement_results_and_spread(edit) -> None:
    done = edit("a.png", "--mask", "mask.png", "--num", "3", "--out", "x.png", "--scale", "1")
    assert "columns: the picture, its measurement, 3 results, their spread" in done.out
    sheet = np.asarray(Image.open("x.png"))
    cells = [sheet[:, 9 * k : 9 * k + 8] for k in range(6)]
    assert np.array_equal(cells[0], PIXELS[0, :, :, 0])
    assert np.array_equal(cells[1][:, :5], cells[0][:, :5])
    assert (cells[1][:, 5:] == 128).all()
    deviation = 4 * np.std(np.stack(cells[2:5]).astype(float), 0)
    assert np.abs(deviation.clip(0, 255) - cells[5]).max() <= 0.5


@pytest.mark.slow
def test_folder_and_store_give_labels_and_results_by_number(edit) -> None:
    made = json.loads(
        edit("store", "--upscale", "2", "--degrade", "--num", "2", "--out", "new", "--json").out
    )
    store = open_store(Path("new"))
    assert store.labels is not None
    assert store.labels.tolist() == [3, 3, 5, 5, 7, 7]
    assert made["card"] == store.meta["card"]
    assert (made["card"]["operator"], made["card"]["method"], made["card"]["nfe"]) == (
        "downsample:2",
        "ddnm",
        3,
    )
    done = edit("many", "--strength", "0.5", "--num", "1", "--out", "x.npz")
    assert len(results()) == 2
    assert "without labels: the class of 1 picture(s) is unknown" in done.out
    edit("store", "--first", "1", "--strength", "0.5", "--class", "class3", "--num", "1", "--out", "y.npz")
    assert len(results("y.npz")) == 1


def test_larger_pictures_keep_nothing_of_what_a_mask_hides(edit) -> None:
    hidden = np.zeros((70, 70), np.uint8)
    hidden[:31] = 255
    Image.fromarray(hidden).save("part.png")
    Image.fromarray(200 - hidden // 255 * 200).save("photo.png")
    edit("photo.png", "--mask", "part.png", "--num", "1", "--out", "x.npz")
    assert (results()[0, 4:] == 200).all()


def test_cards_differ_where_classes_or_numbers_of_results_do(edit) -> None:
    def card(*options: str) -> str:
        done = edit("a.png", "--strength", "0.4", "--out", "x.npz", "--json", *options)
        return json.dumps(json.loads(done.out)["card"], sort_keys=True)

    options = [["--class", "3"], ["--class", "4"], [], ["--class", "3", "--num", "2"]]
    assert len({card("--num", "1", *one) for one in options}) == len(options)
    assert card("--num", "1", "--class", "class3") == card("--num", "1", "--class", "3")


def test_other_sizes_are_resized_and_said_or_tiled(edit) -> None:
    done = edit("wide.png", "--deblur", "0.6", "--degrade", "--num", "1", "--out", "x.npz")
    assert "wide.png: the middle of 20×30 pixels (height × width) at 8×8" in done.out
    edit("wide.png", "--upscale", "2", "--degrade", "--tile", "--num", "1", "--out", "x.npz")
    assert results().shape == (1, 20, 30, 1)
    for factor in (["--upscale", "2"], ["--operator", "downsample:2"]):
        edit("a.png", *factor, "--num", "1", "--out", "x.npz", "--tile")
        assert results().shape == (1, 16, 16, 1)
    edit(
        "odd.png",
        "--operator",
        "downsample:4",
        "--degrade",
        "--tile",
        "--num",
        "1",
        "--out",
        "x.png",
        "--scale",
        "1",
    )
    shown = np.asarray(Image.open("x.png"))[:, :12]
    assert np.array_equal(shown, np.asarray(Image.open("odd.png"))[1:13, :12]), "cropped, not resampled"


def test_model_of_process_edm_is_edited_with_spacing_karras(edit) -> None:
    edm_model(MODEL)
    for options, spacing in (((), "karras"), (("--spacing", "uniform"), "uniform")):
        done = edit("a.png", "--upscale", "2", "--num", "1", "--out", "x.npz", "--json", *options)
        assert json.loads(done.out)["card"]["spacing"] == spacing


def test_folder_with_two_pictures_of_one_name_is_refused(edit, invoke) -> None:
    Image.open("a.png").save("many/class3/b.jpg")
    result = invoke("edit", "many", "--strength", "0.5", "--out", "x.npz")
    assert_refused(result, "1 with the name of another (class3/b.png)", code=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.png"], "nothing to do"),
        (["a.png", "--mask", "mask.png", "--deblur", "1"], "exclude each other"),
        (["a.png", "--strength", "0.5", "--operator", "gray"], "exclude each other"),
        (["a.png", "--strength", "0.5", "--method", "ddnm"], "--strength is not for method ddnm"),
        (["a.png", "--colorize"], "gray needs images with 3 channels (got 1)"),
        (["a.png", "--upscale", "3"], "downsample:3 does not divide 8×8 pixels"),
        (["a.png", "--mask", "alpha"], "the mask hides no pixel"),
        (["store", "--tile", "--upscale", "2"], "--tile takes one picture"),
        (
            ["many/other", "--mask", "mask.png", "--method", "repaint", "--sampler", "heun"],
            "has its own step",
        ),
        (["a.png", "--upscale", "2", "--method", "projection", "--sigma-y", "0.1"], "accepts no noise"),
        (["a.png", "--upscale", "2", "--method-option", "zeta=1"], "zeta: unknown key"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: list[str], words: str, edit, invoke) -> None:
    assert_refused(invoke("edit", *arguments, "--out", "x.npz"), words)
    assert not Path("x.npz").exists()


@pytest.mark.slow
def test_guidance_towards_an_unknown_class_is_refused(edit, invoke) -> None:
    command = ("edit", "a.png", "--mask", "0,0,4,4", "--steps", "3", "--out", "x.npz", "--guidance", "2")
    assert_refused(invoke(*command), "the class of 1 of 1 picture(s) is unknown: give a class")
    edit(*command[1:4], "--out", "x.npz", "--guidance", "2", "--class", "4")
