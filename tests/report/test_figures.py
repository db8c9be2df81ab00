"""Parts of the report: nearest images, figures with their axes, and the training's curve."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffusion.report import sample_pictures
from diffusion.report.figure_base import as_png
from diffusion.report.figures import (
    CurvePoint,
    TrainingCurve,
    loss_curve,
    montage,
    moving_average,
    read_curve,
    score_curve,
)
from diffusion.report.sample_pictures import nearest
from diffusion.system.errors import DiffctlError
from tests.helpers.report_page import write_validation_losses

SETS = arrays(np.uint8, st.tuples(st.integers(1, 6), st.just(3), st.just(3), st.integers(1, 3)))


@settings(max_examples=50)
@given(SETS, st.data())
def test_nearest_image_equals_brute_force(train, data):
    images = data.draw(arrays(np.uint8, (3, *train.shape[1:])))
    _, distances = nearest(images, train)
    rms = np.sqrt(((images[:, None].astype(float) - train[None]) ** 2).mean(axis=(2, 3, 4)))
    np.testing.assert_allclose(distances, rms.min(axis=1), atol=1e-3)


def test_nearest_images_of_many_pixels_are_found_in_bounded_memory(monkeypatch):
    """The array of a block of pixels is smaller than the images as floats."""
    monkeypatch.setattr(sample_pictures, "PIXEL_BLOCK", 500)
    train = np.random.default_rng(0).integers(0, 256, (400, 64, 64, 3), dtype=np.uint8)
    images = train[[5, 123, 399]] ^ 1
    tracemalloc.start()
    try:
        rows, distances = nearest(images, train)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows.tolist() == [5, 123, 399]
    np.testing.assert_allclose(distances, 1.0)
    assert peak < train.size


def test_moving_average_skips_nan():
    line = np.linspace(0, 1, 200)
    np.testing.assert_allclose(moving_average(line)[10:-10], line[10:-10])
    line[50] = np.nan
    assert np.isfinite(moving_average(line)).all()
    assert moving_average(np.array([3.0])).tolist() == [3.0]


@pytest.mark.parametrize(
    ("values", "real", "scale"),
    [
        ((0.5, 1.7), 0.0004, "linear"),
        ((0.1, 1.7), 0.0004, "log"),
        ((-0.1, 9), 0.0004, "linear"),
        ((0.1, 1.7), -0.01, "linear"),
    ],
)
def test_only_the_scores_decide_on_a_log_axis(values, real, scale):
    """Real images may be a thousand times better, which would compress all lines."""
    points = [CurvePoint(steps, "η = 0", value) for steps, value in zip((5, 50), values, strict=True)]
    (axes,) = score_curve(points, "KD", (real, "real")).axes
    assert axes.get_yscale() == scale


def test_lines_differ_in_colour_or_marker():
    points = [CurvePoint(5, f"w = {number}", 1.0) for number in range(30)]
    (axes,) = score_curve(points, "KD").axes
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 30


def test_names_of_lines_are_within_the_figure():
    name = "η = 0, w = 1.5, guided by ema:0.1@20, σ/α in 0.3:2, σ_rel = 0.2"
    points = [CurvePoint(steps, f"{name}{line}", 1.0) for steps in (5, 50) for line in range(9)]
    figure = score_curve(points, "KD", (0.5, "real, held out"))
    as_png(figure)  # places the legend
    legend = figure.axes[0].get_legend()
    assert legend is not None
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_montage_leaves_the_place_of_a_missing_cell_empty():
    """At one step η has no effect, so the grid has no cell for it."""
    tiles = {(1, "η = 0"): 1, (5, "η = 0"): 2, (5, "η = 1"): 3}
    figure = montage({place: np.full((8, 8, 1), value, np.uint8) for place, value in tiles.items()})
    shown = [int(axes.images[0].get_array()[0, 0]) if axes.images else None for axes in figure.axes]
    assert shown == [1, 2, None, 3]
    assert figure.axes[2].get_ylabel() == "η = 1"


@pytest.mark.parametrize(("least", "scale"), [(0.48, "linear"), (0.01, "log")])
def test_axis_of_a_loss_has_two_labels_or_more(least, scale):
    steps = np.arange(10.0)
    figure = loss_curve(TrainingCurve(steps, np.linspace(1.1, least, 10), np.empty(0), {}), "loss")
    as_png(figure)  # sets the labels
    axis = figure.axes[0].yaxis
    assert axis.get_scale() == scale
    low, high = axis.get_view_interval()
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    assert sum(bool(tick.label1.get_text()) and low <= tick.get_loc() <= high for tick in ticks) > 1


@pytest.mark.parametrize("text", ["", "step,loss\n", "step,other\n1,2\n", "step,loss\n1\n"])
def test_damaged_loss_curve_is_named(tmp_path, text):
    (tmp_path / "loss.csv").write_text(text)
    with pytest.raises(DiffctlError, match=r"loss\.csv"):
        read_curve(tmp_path / "loss.csv")


def test_validation_losses_are_read(tmp_path):
    write_validation_losses(tmp_path / "loss.csv")
    curve = read_curve(tmp_path / "loss.csv")
    assert (curve.steps.tolist(), curve.loss.tolist()) == ([10, 20, 30], [0.5, 0.3, 0.2])
    assert curve.val_steps.tolist() == [15, 30]
    assert {label: values.tolist() for label, values in curve.lines().items()} == {
        "validation, EMA": [0.4, 0.42],
        "validation, raw weights": [0.45, 0.46],
    }
    assert dict(curve.facts()) == {
        "validation loss, EMA": "0.42, least 0.4 after step 15",
        "validation loss, raw weights": "0.46",
        "validation mse and vlb, EMA": "0.31, 0.11",
        "validation loss by band of the log-SNR, EMA": "0.8, 0.2",
    }


def test_older_curves_have_losses_by_quarter_of_t(tmp_path):
    (tmp_path / "loss.csv").write_text("step,loss,val_loss,val_loss_q0,val_loss_q3\n10,0.5,0.4,0.9,0.1\n")
    assert ("validation loss by quarter of t, EMA", "0.9, 0.1") in read_curve(tmp_path / "loss.csv").facts()
