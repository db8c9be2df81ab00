"""Published figures in the report: drawn with the sweep's curve, marked if not comparable."""

import pytest

from diffusion.papers.paper import Paper
from diffusion.report import published_figures
from diffusion.report.published_figures import matching_figures, published_content
from tests.helpers.report_page import Page, report
from tests.helpers.scores_document import document, with_space

METRIC = "fd_effnet_lite0_64"


def figure(name, value, **protocol):
    return {"name": name, "where": "table 3", "metric": METRIC, "value": value, "protocol": protocol}


def paper_of(*figures, **stated):
    """A paper on the digits."""
    return Paper(title="P", source="arXiv 1", protocol={"data": "digits", **stated}, figures=list(figures))


def shipped(monkeypatch, *papers):
    monkeypatch.setattr(published_figures, "all_papers", lambda: papers)


def test_sweep_without_published_figures():
    assert published_content(document()) is None


def test_figures_of_other_data_or_scores_are_omitted(monkeypatch):
    other = {**figure("fid", 1.0, steps=5), "metric": "fid"}
    elsewhere = figure("elsewhere", 1.0, data="cifar10", steps=5)
    meant = {**figure("meant", 1.0, data="cifar10", steps=5), "beside": ["digits"]}
    shipped(monkeypatch, paper_of(other, elsewhere, meant, figure("same", 2.0, steps=5)))
    assert [one.figure.name for _, one in matching_figures(document())] == ["meant", "same"]


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
    further = {**figure("b", 500.0, extractor="effnet-lite0-96", steps=5), "metric": "fd_effnet_lite0_96"}
    kernel = {**figure("c", 0.2, steps=5), "metric": "kd_effnet_lite0_64"}
    shipped(monkeypatch, paper_of(figure("a", 9.0, steps=7), further, kernel))
    found = published_content(with_space(document()))
    assert [(row["metric"], row["verdict"]) for row in found["rows"]] == [
        (METRIC, "yes"),
        ("fd_effnet_lite0_96", "yes"),
        ("kd_effnet_lite0_64", "yes"),
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
