"""The page of a comparison: what it says, and what a person sees and does in a browser."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion.choice.certainty import NORMAL
from diffusion.images.store import write_store
from diffusion.protocol.scores import ScoresDocument, write_document
from tests.conftest import diffctl
from tests.helpers.browser import NEEDS_CHROMIUM, PHONE, WIDE
from tests.helpers.scores_document import chance, document, with_errors
from tracking.beside import differing_params, families, finding, sheets, verdicts
from tracking.compare import compare, load_scored
from tracking.comparison import Scored
from tracking.page import comparison_page
from tracking.pictures import pictures_of

BETTER = {(5, 0.0): 0.1, (5, 1.0): 0.5, (10, 0.0): 0.1, (10, 1.0): 0.6}


def certain(one):
    for number, cell in enumerate(one.cells.values()):
        for metric in ("fd_effnet_lite0_64", "kd_effnet_lite0_64"):
            with_errors(cell, metric, chance(number, 0.05 / NORMAL * cell.scores[metric]))
    return one


def alone(runs):
    """Each in a column of its own."""
    return [[one] for one in runs]


def run(**params):
    return SimpleNamespace(data=SimpleNamespace(params=params))


@pytest.fixture
def two():
    """The usual document and one that is better at η = 0."""
    one, other = certain(document()), certain(document(BETTER, model_sha256="b" * 64))
    return [
        Scored("plain", one, run(**{"train.lr.rate": "0.001", "train.steps": "20"})),
        Scored("$new$ <b>", other, run(**{"train.lr.rate": "0.002", "train.steps": "20"})),
    ]


def flat(document_of, value):
    return {name: np.full((12, 20, 1), value, np.uint8) for name in document_of.cells}


def test_one_sentence_says_what_was_found(two):
    said = finding(compare(two))
    assert said == (
        "By kd_effnet_lite0_64, of 4 cells the best is $new$ <b> in 2 and plain in 1; "
        "in 1 the best is not told apart from another."
    )
    same = compare([two[0], Scored("again", two[0].document)])
    assert finding(same) == "By kd_effnet_lite0_64, no run is told apart from another in any of 4 cells."
    assert finding(compare([two[0], Scored("other", document(seed=1))])) is None


def test_the_gate_is_asked_about_each_pair_both_ways(two):
    said = {(one["champion"], one["candidate"]): one for one in verdicts(alone(two))}
    assert said["plain", "$new$ <b>"]["better"]
    assert not said["$new$ <b>", "plain"]["better"]
    assert "against plain's 0.2 (steps10-eta0)" in said["plain", "$new$ <b>"]["reason"]


def test_only_params_that_differ_are_listed_and_a_file_has_none(two):
    assert differing_params(alone(two)) == [("train.lr.rate", ["0.001", "0.002"])]
    with_file = [*two, Scored("scores.json", document())]
    assert differing_params(alone(with_file)) == [("train.lr.rate", ["0.001", "0.002", "–"])]
    assert differing_params(alone([two[0], with_file[2]])) == []


def test_pictures_stand_side_by_side_only_of_the_same_noise(two):
    pictures = [flat(one.document, value) for one, value in zip(two, (0, 255), strict=True)]
    found = sheets(two, pictures)
    assert [(row["cell"], row["best"]) for row in found] == [
        ("5 steps, η = 0", False),
        ("5 steps, η = 1", False),
        ("10 steps, η = 0", True),
        ("10 steps, η = 1", False),
    ]
    assert [side["label"] for side in found[0]["sides"]] == ["plain", "$new$ <b>"]
    assert found[0]["sides"][0]["image"] != found[0]["sides"][1]["image"]
    del pictures[1]["steps10-eta0"]
    assert [row["best"] for row in sheets(two, pictures)] == [True, False, False]
    other = [two[0], Scored("seed 1", document(seed=1))]
    assert sheets(other, [flat(one.document, 0) for one in other]) == []


def test_the_page_is_one_file_that_needs_no_network(two):
    page = comparison_page(compare(two), two, [flat(one.document, 50) for one in two])
    assert not re.search(r"https?:|@import|<script|<link", page)
    assert "<b> " not in page.split("<header>")[1].split("</h1>")[0]  # names are escaped
    uses, ids = re.findall(r'<use href="#(picture[^"]*)"', page), re.findall(r'<image id="([^"]*)"', page)
    assert set(uses) == set(ids)
    assert len(ids) == len(set(ids)) == 8  # each picture is there once
    assert page.count('type="range"') == 4
    assert page.count("fill-opacity: 0.12") == 4  # a band for each line of two drawings
    assert "train.lr.rate" in page
    assert "train.steps" not in page


def test_a_file_finds_the_samples_of_its_scores_beside_it(tmp_path):
    made = document()
    for name, number in {"steps5-eta0": 10, "steps10-eta0": 20}.items():
        card = dict(made.cells[name].card)
        if name == "steps10-eta0":
            card["model_sha256"] = "c" * 64  # of another model than the scores
        images = np.full((4, 8, 8, 1), number, np.uint8)
        write_store(tmp_path / "samples" / name, images, None, {"name": name, "classes": [], "card": card})
    (tmp_path / "metrics").mkdir()
    for place in ("scores.json", "metrics/scores.json"):
        write_document(tmp_path / place, made)
        found = pictures_of(load_scored(str(tmp_path / place)))
        assert {name: picture.max() for name, picture in found.items()} == {"steps5-eta0": 255}
        assert (found["steps5-eta0"][:64, :64] == 10).all()


def of_seeds(setting, factors):
    """Runs of a setting, a seed for each factor of the usual kernel distances."""
    made = []
    for seed, factor in enumerate(factors):
        kernel = {place: factor * value for place, value in BETTER.items()}
        one = certain(document(kernel, model_sha256=f"{setting}{seed}".ljust(64, "0")))
        one = ScoresDocument(**{**dict(one), "training": {"setting": setting * 16, "seed": seed}})
        made.append(Scored(f"{setting}{seed}", one, run(**{"train.seed": str(seed), "of": setting})))
    return made


def test_a_group_stands_as_its_mean_and_says_whether_it_differs():
    scored = [*of_seeds("a", (1.0, 1.1, 0.9)), *of_seeds("b", (2.0, 2.1)), *of_seeds("c", (1.05,))]
    first, second, third = families(compare(scored))
    assert first == {
        "label": "a0 ×3",
        "score": "kd_effnet_lite0_64 0.1 ± 0.01",
        "cell": "steps5-eta0",
        "count": 3,
        "gap": None,
        "told": False,
        "best": True,
    }
    assert (second["score"], second["told"], second["gap"]["value"]) == (
        "kd_effnet_lite0_64 0.205 ± 0.0071",
        True,
        "0.1",
    )
    assert (third["count"], third["told"], third["best"]) == (1, False, False)
    assert families(compare(scored[:1] + scored[3:4])) == []
    assert finding(compare(scored)) == (
        "By kd_effnet_lite0_64, of 4 cells the best is told apart from all others in none."
    )


def test_the_gate_is_not_asked_about_two_seeds_of_a_setting_and_settings_are_joined():
    scored = [*of_seeds("a", (1.0, 1.1)), *of_seeds("b", (2.0, 2.1))]
    groups = compare(scored).groups
    pairs = {(one["champion"], one["candidate"]) for one in verdicts(groups)}
    assert pairs == {(a, b) for a in ("a0", "a1") for b in ("b0", "b1")} | {
        (b, a) for a in ("a0", "a1") for b in ("b0", "b1")
    }
    assert differing_params(groups) == [("of", ["a", "b"]), ("train.seed", ["0, 1", "0, 1"])]


def test_a_single_group_has_a_page_with_its_band_and_every_seed():
    scored = of_seeds("a", (1.0, 1.1, 0.9))
    comparison = compare(scored)
    page = comparison_page(comparison, scored, [flat(one.document, 50) for one in scored])
    assert finding(comparison) is None
    assert "No best is marked" not in page
    assert "over 3 seeds" in page
    assert page.count("fill-opacity: 0.12") == 2  # a band in each of two drawings
    assert page.count('type="range"') == 8  # of each cell the first seed against two others
    both = [*scored, *of_seeds("b", (2.0, 2.1))]
    page = comparison_page(compare(both), both, [flat(one.document, 50) for one in both])
    assert page.count('type="range"') == 4  # one training of each column
    assert "What the gate would say of each two models" in page


@pytest.fixture
def opened(two, tmp_path, browser):
    """A function that opens the page of two runs, black and white, at a size and in a scheme."""
    pictures = [flat(one.document, value) for one, value in zip(two, (0, 255), strict=True)]
    (tmp_path / "page.html").write_text(comparison_page(compare(two), two, pictures), encoding="utf-8")

    def opened(size, scheme):
        page = browser.new_page(viewport=size, color_scheme=scheme)
        page.route(re.compile("^(?!file:|data:)"), lambda route: pytest.fail(f"asks for {route.request.url}"))
        page.goto((tmp_path / "page.html").as_uri())
        return page

    return opened


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen_and_its_slider_obeys_the_keyboard(opened, size, scheme):
    page = opened(size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    assert page.locator("details[open]").count() == 1
    slider = page.locator("details[open] input[type=range]")
    slider.focus()
    before = page.locator("details[open] .over").evaluate("one => getComputedStyle(one).clipPath")
    page.keyboard.press("Home")
    after = page.locator("details[open] .over").evaluate("one => getComputedStyle(one).clipPath")
    assert before != after
    assert slider.input_value() == "0"
    page.keyboard.press("End")
    assert slider.input_value() == "100"
    closed = page.locator("details:not([open]) summary").first
    closed.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open]").count() == 2
    page.close()


@pytest.mark.slow
def test_the_command_writes_it(tmp_path):
    for name, one in {"a": document(), "b": document(BETTER, model_sha256="b" * 64)}.items():
        write_document(tmp_path / f"{name}.json", one)
    done = diffctl(tmp_path, "compare", "a.json", "b.json", "--html", "page.html")
    assert done.returncode == 0, done.stderr
    assert "The gate would" in (tmp_path / "page.html").read_text(encoding="utf-8")
