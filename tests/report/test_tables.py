"""The report's sentences and tables: the headline, the lineage, other seeds, and published figures."""

import statistics
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from diffusion.config import parse
from diffusion.papers.paper import Paper
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.report import comparisons
from diffusion.report.comparisons import (
    compare_seeds,
    excluded_seeds,
    matching_figures,
    published_content,
    seeds_content,
)
from diffusion.report.page_content import _lineage, _yaml
from diffusion.report.score_tables import best_cell, headline
from tests.conftest import ROOT, params
from tests.helpers.report_page import Page, report
from tests.helpers.scores_document import certain, document, with_space

FD, KD = "fd_effnet_lite0_64", "kd_effnet_lite0_64"
CELLS = {(5, 0.0): 0.3, (10, 0.0): 0.22, (20, 0.0): 0.2, (50, 0.0): 0.21}
VALUES = st.lists(st.integers(10, 900), min_size=2, max_size=8)


def test_a_tied_cell_is_not_called_the_best():
    lowest, tied = "Of 4 cells, 20 steps, η = 0 has the lowest KD, and", "statistically tied with it"
    cheapest = "the cheapest is 10 steps, η = 0, for 10 NFE per image instead of 20"
    assert headline(certain(document(CELLS), KD, half=0.15)) == f"{lowest} 2 others are {tied}: {cheapest}."
    assert headline(certain(document(CELLS), KD, half=0.05)) == f"{lowest} one other is {tied}."


def test_headline_names_only_the_best_without_a_tie():
    for one in (certain(document(CELLS), KD, half=0.005), document(CELLS)):
        assert headline(one) == "Of 4 cells, 20 steps, η = 0 is the best by KD."
    assert headline(document({(10, 0.0): 0.2})) == "One cell was sampled: 10 steps, η = 0."


@pytest.mark.parametrize(("recall", "excess", "far"), [(0.1, 30, True), (0.3, 30, False), (0.1, 20, False)])
def test_samples_far_from_the_data_are_named(recall, excess, far) -> None:
    one, name = document(), "recall_effnet_lite0_64"
    one.cells[one.best.cell].scores.update({name: recall, "excess": excess})  # the floor is 25
    one.reference.floor.update(dict.fromkeys((name, FD, KD), 0.7))
    assert ("far" in best_cell(one)) == far
    del one.reference.floor[name]  # there are fewer held-out images than samples
    assert ("far" in best_cell(one)) == far


def test_lineage_lists_the_nearest_model_first() -> None:
    near = {"sha256": "b" * 64, "data": "clothes", "digest": "c" * 64, "step": 2800}
    far = {"sha256": "d" * 64, "data": "photos", "digest": "file:e", "step": 0}
    start = {"sha256": "b" * 64, "freeze": ["encoder", "time.0"], "lr_scale": 0.1}
    meta = {"count": 1, "digest": "0" * 64, "name": "cell", "classes": [], "card": {}, "lineage": [near, far]}
    inputs = SimpleNamespace(
        config=parse(params(train={"init_from": start}), "test"), best=SimpleNamespace(meta=meta)
    )
    assert _lineage(inputs) == [  # type: ignore[arg-type]
        ("started from", "bbbbbbbbbbbbbbbb: 2,800 steps of clothes (cccccccccccccccc)"),
        ("before that", "dddddddddddddddd: 0 steps of photos (file:e)"),
        ("frozen", "encoder, time.0"),
        ("rate of what was there", "0.1 of the learning rate"),
    ]


def test_configuration_has_the_sections_that_the_stage_depends_on():
    values = params(tracking={"title": "x"})
    values["classifier"] = {"model": values["model"], "train": {"steps": 4, "batch_size": 4, "lr": 0.1}}
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["report"]
    depends_on = {section for section in stage["params"] if isinstance(section, str)}
    assert yaml.safe_load(_yaml(parse(values, "test"))).keys() == depends_on


def of_seed(seed, *values, setting="a" * 16, steps=(10, 5), **card):
    """Scores of a training with one cell per value; the first is 10 steps, η = 0."""
    kernel = {(count, 0.0): value for count, value in zip(steps, values, strict=False)}
    one = document(kernel, model_sha256=f"{seed}".rjust(64, "0"), **card)
    return ScoresDocument(**{**dict(one), "training": {"setting": setting, "seed": seed}})


def kernel(found):
    return next(one for one in found if one.metric == KD)


@given(VALUES)
def test_mean_spread_and_rank_include_all_seeds(thousandths):
    values = [value / 1000 for value in thousandths]
    own, *others = [of_seed(seed, value) for seed, value in enumerate(values)]
    one = kernel(compare_seeds(own, others))
    assert one.values == dict(enumerate(values))
    assert one.mean == pytest.approx(statistics.fmean(values))
    assert one.deviation == pytest.approx(statistics.stdev(values))
    assert one.place == 1 + sum(value < values[0] for value in values)


@given(st.floats(0.001, 0.01), st.integers(-400, 400))
def test_outlier_test_follows_student_t(spread, tenths):
    """With two others the Student quantile is 12.706, and the spread of a third is √(1 + 1/2)."""
    away, half = tenths / 10, 12.7062 * 1.5**0.5
    assume(abs(abs(away) - half) > 0.05)
    others = [of_seed(1, 0.5 - spread / 2**0.5), of_seed(2, 0.5 + spread / 2**0.5)]
    one = kernel(compare_seeds(of_seed(0, 0.5 + away * spread), others))
    assert one.is_apart == (abs(away) > half)


def test_other_settings_and_protocols_are_ignored():
    own = of_seed(0, 0.2)
    others = [
        of_seed(1, 0.3),
        of_seed(1, 0.9),  # older
        of_seed(0, 0.8),  # by another torch
        of_seed(2, 0.7, num_images=1000),
        of_seed(3, 0.6, steps=(20,)),
        of_seed(4, 0.5, setting="b" * 16),
    ]
    assert kernel(compare_seeds(own, others)).values == {0: 0.2, 1: 0.3}
    assert excluded_seeds(own, others) == {2: ["num_images"], 3: []}
    assert compare_seeds(own, others[3:]) == []
    assert seeds_content(own, others[3:]) is None
    assert compare_seeds(document(), others) == []


def test_drawing_needs_two_numbers_of_steps():
    assert seeds_content(of_seed(0, 0.2), [of_seed(1, 0.3)])["drawing"] is None
    content = seeds_content(of_seed(0, 0.2, 0.4), [of_seed(1, 0.3, 0.5)])
    assert content["drawing"].count("fill-opacity: 0.12") == 1  # the band of the spread
    assert [row["place"] for row in content["rows"]] == ["1 of 2"] * 3


def figure(name, value, **protocol):
    return {"name": name, "where": "table 3", "metric": FD, "value": value, "protocol": protocol}


def paper_of(*figures, **stated):
    """A paper on the digits."""
    return Paper(title="P", source="arXiv 1", protocol={"data": "digits", **stated}, figures=list(figures))


def shipped(monkeypatch, *papers):
    monkeypatch.setattr(comparisons, "PAPERS", papers)
    monkeypatch.setattr(comparisons, "open_paper", lambda paper: paper)


def test_sweep_without_published_figures():
    assert published_content(document()) is None


def test_figures_of_other_data_or_scores_are_omitted(monkeypatch):
    other = {**figure("fid", 1.0, steps=5), "metric": "fid"}
    elsewhere = figure("elsewhere", 1.0, data="cifar10", steps=5)
    meant = {**figure("meant", 1.0, data="cifar10", steps=5), "datasets": ["digits"]}
    shipped(monkeypatch, paper_of(other, elsewhere, meant, figure("same", 2.0, steps=5)))
    assert [one.figure.name for one in matching_figures(document())] == ["meant", "same"]


def test_only_steps_and_eta_may_differ(monkeypatch):
    rows = [figure("a", 9.0, steps=7, eta=0.3), figure("b", 9.0, steps=5, spacing="quadratic")]
    shipped(monkeypatch, paper_of(*rows, num_images=500))
    found = published_content(document())
    assert [row["verdict"] for row in found["rows"]] == ["yes", "no: spacing quadratic (here uniform)"]
    assert found["alike"] == ""
    (axes,) = found["drawing"].axes
    marks = [line for line in axes.lines if line.get_marker() == "*"]
    assert {line.get_label(): list(line.get_xdata()) for line in marks} == {
        "published, not comparable": [5],
        "published, comparable": [7],
    }
    assert axes.get_xlim()[1] > 10


def test_all_figures_are_listed_and_those_of_the_curve_drawn(monkeypatch):
    protocol = {"extractor": "effnet-lite0-96", "weights_sha256": "v" * 64, "steps": 5}
    further = {**figure("b", 500.0, **protocol), "metric": "fd_effnet_lite0_96"}
    kernel = {**figure("c", 0.2, steps=5), "metric": KD}
    shipped(monkeypatch, paper_of(figure("a", 9.0, steps=7), further, kernel))
    found = published_content(with_space(document()))
    assert [(row["metric"], row["verdict"]) for row in found["rows"]] == [
        (FD, "yes"),
        ("fd_effnet_lite0_96", "yes"),
        (KD, "yes"),
    ]
    (axes,) = found["drawing"].axes
    assert [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "*"] == [[7]]
    shipped(monkeypatch, paper_of(further))
    found = published_content(with_space(document()))
    (axes,) = found["drawing"].axes
    assert found["label"] == "fd_effnet_lite0_96"
    assert 600.0 in [value for line in axes.lines for value in line.get_ydata()]  # twice the first one's


@pytest.mark.slow
def test_page_shows_published_figures(sweep, tmp_path, monkeypatch):
    shipped(monkeypatch, paper_of(figure("a paper's model", 900.0, steps=20), num_images=50_000))
    text = report(sweep, tmp_path / "report").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert "a paper&#39;s model" in text
    assert "None is: the papers have num_images 50,000 (here 60)." in text
    assert "published figures" in text
