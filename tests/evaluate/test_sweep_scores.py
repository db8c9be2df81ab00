"""The stage `evaluate`: scores, cards and refusals of a sweep."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from diffusion.choice.confidence import interval_of
from diffusion.evaluate.features.extractors import ProgressCounter, exact_float32, extract
from diffusion.evaluate.scores.moments import frechet_distance, statistics
from diffusion.evaluate.sweep_scores import two_scoring_threads, write_scores
from diffusion.images.store import open_store, write_store
from diffusion.protocol.card import differing_fields
from diffusion.protocol.grid import SAMPLING_VERSION
from diffusion.protocol.scores_document import document_values
from diffusion.system.errors import DiffctlError
from diffusion.system.threads import Stopped
from tests.helpers.digits_sweep import CLASSES, ONE_CELL, make_config, rewrite, score_sweep, write_sweep

FD, KD = "fd_effnet_lite0_64", "kd_effnet_lite0_64"
NAMES = {  # of all scores of a cell
    *(f"{FD}{end}" for end in ("", "_low", "_high", "_inf")),
    *(f"{KD}{end}" for end in ("", "_low", "_high", "_std")),
    *(f"{name}_effnet_lite0_64" for name in ("precision", "recall", "density", "coverage", "is")),
    "is_effnet_lite0_64_std", "memorisation", "memorisation_std",
    "floor", "excess", "excess_low", "excess_high",
}  # fmt: skip


CONFIG = make_config()


@pytest.fixture(scope="module")
def root(tmp_path_factory, real):
    """Return a folder with prepared/, reference/ and samples/."""
    root = shutil.copytree(real, tmp_path_factory.mktemp("sweep") / "sweep")
    write_sweep(root / "samples", CONFIG)
    return root


def scored(root, config=CONFIG, **options):
    return score_sweep(config, root / "samples", root / "reference", **options)


@pytest.fixture(scope="module")
def document(root):
    return scored(root, prepared=root / "prepared")


@pytest.fixture(scope="module")
def one_cell(root):
    return scored(root, make_config(sweep=ONE_CELL), prepared=root / "prepared")


@pytest.fixture
def own(root, tmp_path):
    """Return a copy of the folder that a test may damage."""
    return shutil.copytree(root, tmp_path / "sweep")


@pytest.mark.slow
def test_every_cell_has_scores_with_intervals_and_a_card(document):
    assert list(document.cells) == [f"steps{steps}-eta{eta}" for steps in (5, 10, 50) for eta in (0, 1)]
    assert set(differing_fields([cell.card for cell in document.cells.values()])) == {"steps", "eta", "nfe"}
    floor = document.reference.floor
    assert (floor["num_images"], floor["extrapolated"]) == (60, False)
    assert document.intervals.confidence == 0.95
    for name, cell in document.cells.items():
        assert cell.model_fields_set == {"steps", "eta", "scores", "card", "classes", "errors"}
        assert name == cell.name
        assert (cell.card["steps"], cell.card["eta"]) == (cell.steps, cell.eta)
        assert set(cell.scores) == NAMES
        assert all(type(value) is float and np.isfinite(value) for value in cell.scores.values())
        scores = cell.scores
        assert scores["floor"] == floor[FD]
        assert scores["excess"] == scores[FD] - scores["floor"]
        for metric in (FD, KD, "excess"):
            low, high = interval_of(cell, metric)
            assert low < scores[metric] < high
        assert interval_of(cell, "precision_effnet_lite0_64") is None


def test_intervals_can_be_left_out(root, one_cell):
    without = scored(root, make_config(sweep=ONE_CELL, evaluate={"confidence_intervals": False}))
    assert without.intervals is None
    whole, cell = one_cell.cells["steps50-eta0"], without.cells["steps50-eta0"]
    assert whole.scores.items() >= cell.scores.items()
    assert interval_of(cell, "excess") is None
    assert cell.card == whole.card


def test_class_scores_equal_those_of_the_class_alone(root, one_cell, extractor):
    store, train = open_store(root / "samples/steps50-eta0"), open_store(root / "prepared/train")
    classes = one_cell.cells["steps50-eta0"].classes
    assert list(classes) == CLASSES
    assert sum(entry["num_images"] for entry in classes.values()) == 60
    ours, real = (
        extract(extractor, np.array(images.images[images.labels == 3])).features for images in (store, train)
    )
    want = frechet_distance(statistics(ours), statistics(real))
    assert classes["3"][FD] == pytest.approx(want, rel=1e-4)


@pytest.mark.slow
def test_scores_are_reproduced_to_the_byte(root, document):
    again = scored(root, make_config(sweep={"steps": [10, 50], "eta": [0.0]}))
    cells = {name: document_values(document)["cells"][name] for name in again.cells}
    assert json.dumps(document_values(again)["cells"]) == json.dumps(cells)


def test_csv_is_in_long_format(one_cell, tmp_path):
    write_scores(one_cell, tmp_path / "scores.json", tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["cell", "line", "steps", "eta", "metric", "value"]
    for row in rows:
        cell = one_cell.cells[row["cell"]]
        assert (int(row["steps"]), float(row["eta"])) == (cell.steps, cell.eta)
        assert float(row["value"]) == cell.scores[row["metric"]]
    assert len(rows) == 11
    assert not any(row["metric"].endswith(("_std", "_low", "_high")) for row in rows)


@pytest.mark.slow
def test_cells_may_have_samplers_and_spacings_with_options(real, tmp_path):
    sweep = {"steps": [5], "eta": [0.0], "sampler": ["ddim", "heun"], "spacing": ["uniform", "karras"]}
    config = make_config(sweep=sweep)
    cells = score_sweep(config, write_sweep(tmp_path, config), real / "reference").cells
    assert len(cells) == 4
    assert {"sampler_options", "spacing_options"} <= cells[
        "steps5-eta0-sampler_heun-spacing_karras"
    ].card.keys()


@pytest.mark.slow
def test_cells_may_have_guidance_rules_with_own_versions_and_clipping(real, tmp_path):
    sweep = {**ONE_CELL, "guidance": [0, 1], "guidance_rule": ["apg", "cfg-zero"]}
    config = make_config(sweep=sweep, train={"p_uncond": 0.1})
    cells = score_sweep(config, write_sweep(tmp_path, config), real / "reference").cells
    assert len({(cell.card["sampling_version"], cell.card["clip"]) for cell in cells.values()}) == 3


@pytest.mark.parametrize(
    ("card", "match"),
    [
        ({"guidance": 0.5}, "was sampled with guidance 0.5"),
        ({"guidance_interval": "0.2:5"}, "guidance_interval"),
        ({"num_images": 59}, "num_images"),
        ({"sampling_version": SAMPLING_VERSION + 1}, "sampling_version"),
        ({"model_sha256": "b" * 64}, "model_sha256"),  # unlike in the other cells
        ({"sampling_torch": "2.12.0"}, "sampling_torch"),
        (None, "card"),
    ],
)
def test_cell_of_another_protocol_is_refused(own, card, match):
    path = own / "samples/steps5-eta0"
    store = open_store(path)
    meta = {key: value for key, value in store.meta.items() if key != "card"}
    changed = {} if card is None else {"card": store.meta["card"] | card}
    write_store(path, np.array(store.images), store.labels, meta | changed)
    with pytest.raises(DiffctlError, match=match):
        scored(own)


def test_missing_cell_and_stale_reference_are_refused(own):
    rewrite(own / "prepared/train")
    with pytest.raises(DiffctlError, match="stale"):
        scored(own, prepared=own / "prepared")
    with pytest.raises(DiffctlError, match="reference_split"):
        scored(own, make_config(evaluate={"reference": "test"}))
    shutil.rmtree(own / "samples/steps5-eta0")
    with pytest.raises(DiffctlError, match="steps5-eta0 is not in"):
        scored(own)


def test_exact_float32_lasts_until_the_last_thread_ends():
    """The setting is process-wide: reset by the first thread, it would give the other one TF32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with two_scoring_threads():
            with exact_float32():  # of a thread that ends first
                pass
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(precision)


def test_progress_is_added_and_raises_after_a_stop():
    seen = []
    counter = ProgressCounter(lambda done, total: seen.append((done, total)), 20)
    for images in (0, 4, 0, 16):
        counter.add(images)
    assert seen == [(0, 20), (4, 20), (4, 20), (20, 20)]
    counter.stop()
    with pytest.raises(Stopped):
        counter.add(4)
