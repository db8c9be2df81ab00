"""The page of a comparison: its content, and its behaviour in a browser."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion.choice.selection import select
from diffusion.images.store import write_store
from diffusion.protocol.scores_document import CellScores, document_values, write_scores_document
from tests.helpers.browser import NEEDS_CHROMIUM, PHONE, WIDE
from tests.helpers.scores_document import certain, document, of_seed
from tracking.comparison.comparison_page import (
    describe_finding,
    differing_params,
    gate_verdicts,
    load_pictures,
    load_real_picture,
    picture_sheets,
    render_comparison,
)
from tracking.comparison.score_comparison import ScoredRun, compare, load_scored

BETTER = {(5, 0.0): 0.1, (5, 1.0): 0.5, (10, 0.0): 0.1, (10, 1.0): 0.6}


def run(**params):
    return SimpleNamespace(data=SimpleNamespace(params=params))


@pytest.fixture
def two():
    """The default document and one that is better at η = 0."""
    one = certain(document(), half=0.05)
    other = certain(document(BETTER, model_sha256="b" * 64), half=0.05)
    return [
        ScoredRun("plain", one, run(**{"train.lr.rate": "0.001", "train.steps": "20"})),
        ScoredRun("$new$ <b>", other, run(**{"train.lr.rate": "0.002", "train.steps": "20"})),
    ]


def pictures(scored, *values):
    """Return uniform pictures of every cell, by label."""
    grey = values or [50] * len(scored)
    return {
        one.label: {name: np.full((12, 20, 1), value, np.uint8) for name in one.document.cells}
        for one, value in zip(scored, grey, strict=True)
    }


def test_finding_counts_the_cells_with_a_significant_best(two):
    assert describe_finding(compare(two)) == (
        "By kd_effnet_lite0_64, of 4 cells the best is $new$ <b> in 2 and plain in 1; "
        "in 1 the best is not significantly better than another."
    )
    same = compare([two[0], ScoredRun("again", two[0].document)])
    assert "no run is significantly better" in describe_finding(same)
    assert describe_finding(compare([two[0], ScoredRun("other", document(seed=1))])) is None


def test_only_differing_params_are_listed(two):
    columns = [[two[0]], [two[1]], [ScoredRun("scores.json", document())]]
    assert differing_params(columns) == [("train.lr.rate", ["0.001", "0.002", "–"])]
    assert differing_params(columns[::2]) == []


def test_pictures_are_paired_only_for_the_same_noise(two):
    shown = pictures(two, 0, 255)
    found = picture_sheets(two, shown)
    cells = [f"{steps} steps, η = {eta}" for steps in (5, 10) for eta in (0, 1)]
    assert [(row["cell"], row["best"]) for row in found] == [(cell, cell == cells[2]) for cell in cells]
    assert [side["label"] for side in found[0]["sides"]] == ["plain", "$new$ <b>"]
    assert found[0]["sides"][0]["image"] != found[0]["sides"][1]["image"]
    del shown["$new$ <b>"]["steps10-eta0"]
    assert [row["best"] for row in picture_sheets(two, shown)] == [True, False, False]
    other = [two[0], ScoredRun("seed 1", document(seed=1))]
    assert picture_sheets(other, pictures(other)) == []


def test_page_is_one_file_without_network_access(two):
    page = render_comparison(compare(two), pictures(two))
    assert not re.search(r"https?:|@import|<script|<link", page)
    uses, ids = re.findall(r'<use href="#(picture[^"]*)"', page), re.findall(r'<image id="([^"]*)"', page)
    assert set(uses) == set(ids)
    assert len(ids) == len(set(ids)) == 8, "each picture is stored once"
    assert page.count('type="range"') == 4
    assert page.count("fill-opacity: 0.12") == 4, "a band for each line of two charts"
    assert "train.lr.rate" in page
    assert "train.steps" not in page


def test_page_lists_what_was_left_out_and_escapes_names():
    few, other = document({(10, 0.0): 0.2}), document({(10, 0.0): 0.2}, seed=1)
    labelled = {"<b>a</b>": few, "b": few, "c": other}
    page = render_comparison(compare([ScoredRun(*one) for one in labelled.items()]))
    assert "&lt;b&gt;a&lt;/b&gt;" in page
    assert '<th scope="row">seed</th>' in page
    assert "c: steps10-eta0" in page
    nothing = render_comparison(compare([ScoredRun("a", few), ScoredRun("c", other)]))
    assert "Nothing here can be compared" in nothing


def test_real_images_are_those_of_the_scores(two, tmp_path):
    images = np.arange(20, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    meta = {"name": "digits", "split": "test", "counts": [10, 10], "classes": ["a", "b"]}
    meta |= {"image_size": 8, "channels": 1, "options": {}, "sources": {}}
    labels = np.arange(20) // 10
    store = write_store(tmp_path / "test", images, labels, meta)
    held_out = {"heldout_split": "test", "heldout_digest": store.digest}
    scores = two[0].document
    known = scores.model_copy(update={"reference": scores.reference.model_copy(update=held_out)})
    picture = load_real_picture(known, tmp_path)
    assert [int(picture[0, left, 0]) for left in (0, 66, 132, 198)] == [0, 10, 1, 11]  # the classes in turn
    assert load_real_picture(scores, tmp_path) is None
    assert load_real_picture(known, tmp_path / "none") is None
    assert "Held-out real images" in render_comparison(compare(two), pictures(two), picture)


def test_pictures_of_a_file_are_the_samples_of_its_model(tmp_path):
    scores = document()
    for name, number in {"steps5-eta0": 10, "steps10-eta0": 20}.items():
        card = dict(scores.cells[name].card)
        if name == "steps10-eta0":
            card["model_sha256"] = "c" * 64  # another model
        images = np.full((4, 8, 8, 1), number, np.uint8)
        write_store(tmp_path / "samples" / name, images, None, {"name": name, "classes": [], "card": card})
    (tmp_path / "metrics").mkdir()
    for place in ("scores.json", "metrics/scores.json"):
        write_scores_document(tmp_path / place, scores)
        found = load_pictures(load_scored(str(tmp_path / place)))
        assert {name: picture.max() for name, picture in found.items()} == {"steps5-eta0": 255}
        assert (found["steps5-eta0"][:64, :64] == 10).all()


def of_seeds(setting, factors):
    """Return a run for each factor, which multiplies its kernel distances."""
    return [
        ScoredRun(
            f"{setting}{seed}",
            of_seed({place: factor * value for place, value in BETTER.items()}, setting, seed),
            run(**{"train.seed": str(seed), "of": setting}),
        )
        for seed, factor in enumerate(factors)
    ]


def test_gate_judges_runs_of_two_settings_in_both_directions(two):
    verdicts = {(one["champion"], one["candidate"]): one for one in gate_verdicts([[one] for one in two])}
    assert verdicts["plain", "$new$ <b>"]["better"]
    assert not verdicts["$new$ <b>", "plain"]["better"]
    assert "plain's 0.2 (steps10-eta0)" in verdicts["plain", "$new$ <b>"]["reason"]
    groups = compare([*of_seeds("a", (1.0, 1.1)), *of_seeds("b", (2.0, 2.1))]).groups
    pairs = {(one["champion"], one["candidate"]) for one in gate_verdicts(groups)}
    one_way = {(a, b) for a in ("a0", "a1") for b in ("b0", "b1")}
    assert pairs == one_way | {(b, a) for a, b in one_way}
    assert differing_params(groups) == [("of", ["a", "b"]), ("train.seed", ["0, 1", "0, 1"])]


def test_gate_judges_an_ema_profile_by_its_own_cells(two):
    scored = certain(document(BETTER, model_sha256="b" * 64, ema=0.1), half=0.05)
    cells = [CellScores(**{**document_values(cell), "ema": 0.1}) for cell in scored.cells.values()]
    named = {cell.name: cell for cell in cells}
    profile = select(named, extractor=scored.extractor, reference=scored.reference)
    found = gate_verdicts([two[:1], [ScoredRun("profile", profile, run())]])
    assert found[0]["better"]
    assert "not comparable" not in found[1]["reason"]


def test_page_of_one_group_shows_its_band_and_seeds():
    scored = of_seeds("a", (1.0, 1.1, 0.9))
    comparison = compare(scored)
    page = render_comparison(comparison, pictures(scored))
    assert describe_finding(comparison) is None
    assert "No best is marked" not in page
    assert "a0 ×3 is the mean ± standard deviation of a0, a1, a2" in page
    assert page.count("fill-opacity: 0.12") == 2, "a band in each of two charts"
    assert page.count('type="range"') == 8, "in each cell the first seed against two others"
    both = [*scored, *of_seeds("b", (2.0, 2.1))]
    page = render_comparison(compare(both), pictures(both))
    assert page.count('type="range"') == 4, "one training of each column"


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_page_fits_the_screen_and_its_slider_works_by_keyboard(two, tmp_path, browser, size):
    html = render_comparison(compare(two), pictures(two, 0, 255))
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    page = browser.new_page(viewport=size)
    page.route(re.compile("^(?!file:|data:)"), lambda route: pytest.fail(f"requests {route.request.url}"))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    assert page.locator("details[open]").count() == 1
    page.locator("details[open] input[type=range]").focus()
    before = page.locator("details[open] .over").evaluate("one => getComputedStyle(one).clipPath")
    page.keyboard.press("Home")
    after = page.locator("details[open] .over").evaluate("one => getComputedStyle(one).clipPath")
    assert before != after
    page.close()
