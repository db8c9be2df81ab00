"""Published figures: those that come with the project, anyone's own, and what is no such file."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.papers.compare import Seen, beside_cells, beside_scores, departures, shared
from diffusion.papers.paper import PAPERS, Paper, card_fields, open_paper
from diffusion.protocol.grid import settings_card
from diffusion.protocol.settings import SampleSettings
from diffusion.system.errors import DiffctlError, UsageError
from tests.helpers.scores_document import document, with_space

FIGURE = {"name": "ours", "where": "table 1", "metric": "fid", "value": 2.0, "protocol": {"steps": 10}}
PAPER = {"title": "A paper", "source": "arXiv", "protocol": {"num_images": 500}, "figures": [FIGURE]}


def written(path, values):
    file = path / "paper.yaml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return str(file)


@pytest.mark.parametrize("name", PAPERS)
def test_every_paper_states_what_makes_a_score_comparable(name):
    paper = open_paper(name)
    assert "arXiv" in paper.source
    for figure in paper.figures:
        stated = paper.protocol_of(figure)
        assert {"data", "image_size", "num_images", "extractor", "reference_split", "steps"} <= stated.keys()
        assert stated.keys() <= card_fields()
        assert paper.beside(figure)


def test_table_1_of_ddim_is_whole():
    """2010.02502, table 1, CIFAR-10, its rows by η and σ̂ and its columns by S."""
    paper = open_paper("ddim")
    table = {}
    for figure in paper.figures:
        stated = paper.protocol_of(figure)
        row = stated["eta"] if stated.get("noise") != "large" else "large"
        table.setdefault(row, {})[stated["steps"]] = figure.value
    columns = [10, 20, 50, 100, 1000]
    assert table == {
        0.0: dict(zip(columns, [13.36, 6.84, 4.67, 4.16, 4.04], strict=True)),
        0.2: dict(zip(columns, [14.04, 7.11, 4.77, 4.25, 4.09], strict=True)),
        0.5: dict(zip(columns, [16.66, 8.35, 5.25, 4.46, 4.29], strict=True)),
        1.0: dict(zip(columns, [41.07, 18.36, 8.01, 5.78, 4.73], strict=True)),
        "large": dict(zip(columns, [367.43, 133.37, 32.72, 9.99, 3.17], strict=True)),
    }


def test_the_figures_of_adm_and_edm_are_those_that_were_published():
    adm: dict[str, list[float]] = {}
    for figure in open_paper("adm").figures:
        adm.setdefault(figure.metric, []).append(figure.value)
    assert adm == {"fid": [2.07, 2.61, 2.92], "precision": [0.74], "recall": [0.63]}
    edm = open_paper("edm")
    assert [figure.value for figure in edm.figures] == [1.79, 1.79, 1.97, 1.98, 1.36]
    assert edm.least_of == 3


def ddim_card(**changes):
    """The card of a run by DDIM's protocol at S = 10 and η = 0."""
    card = settings_card(SampleSettings(steps=10, spacing="quadratic"))
    real = {"data": "cifar10", "image_size": 32, "reference_split": "train", "reference_count": 50_000}
    return {**card, **real, "num_images": 50_000, "extractor": "inception-v3-compat", **changes}


def test_a_run_by_the_papers_protocol_is_comparable_with_that_figure_alone():
    found = beside_scores(open_paper("ddim"), [Seen(ddim_card(), {"fid": 13.0})])
    assert [one.figure.value for one in found if one.is_comparable] == [13.36]


@pytest.mark.parametrize(
    "change",
    [
        {"num_images": 10_000},
        {"reference_split": "test"},
        {"extractor": "effnet-lite0-64"},
        {"spacing": "uniform"},
        {"eta": 0.2},
        {"guidance": 1.0},
        {"sampler": "dpm-solver++"},
        {"data": None},
    ],
)
def test_one_field_that_differs_keeps_a_figure_apart_and_is_named(change):
    paper = open_paper("ddim")
    (field, value) = next(iter(change.items()))
    found = departures(paper, paper.figures[0], ddim_card(**change))
    assert [(one.field, one.here) for one in found] == [(field, value)]


def test_what_a_paper_leaves_open_keeps_nothing_apart():
    paper = open_paper("ddim")
    assert not departures(paper, paper.figures[0], ddim_card(clip=False, seed=7, classes="data"))


def test_the_least_of_several_runs_is_comparable_with_no_single_one():
    paper = Paper(**{**PAPER, "least_of": 3})
    (found,) = beside_scores(paper, [Seen({"num_images": 500, "steps": 10}, {"fid": 1.0})])
    assert not found.is_comparable
    assert [str(one) for one in found.departures] == ["least of 3 (here 1)"]


def test_a_score_that_is_not_there_is_comparable_with_nothing():
    (found,) = beside_scores(Paper(**PAPER), [Seen({"num_images": 500, "steps": 10}, {})])
    assert (found.here, found.departures, found.is_comparable) == (None, (), False)


def test_a_figure_stands_beside_the_extractor_that_has_its_score():
    """One that needs all of the first extractor's card, one that needs a further one's."""
    other = {**FIGURE, "metric": "sfid", "protocol": {"extractor": "inception-v3-spatial"}}
    paper = Paper(
        **{**PAPER, "figures": [{**FIGURE, "protocol": {"extractor": "inception-v3-compat"}}, other]}
    )
    seen = [
        Seen({"num_images": 500, "extractor": f"inception-v3-{name}"}, scores)
        for name, scores in (("compat", {"fid": 1.0}), ("spatial", {"sfid": 2.0}))
    ]
    found = beside_scores(paper, seen)
    assert [(one.here, one.is_comparable) for one in found] == [(1.0, True), (2.0, True)]


def test_a_figure_of_a_further_space_stands_beside_a_cell():
    space = {**FIGURE, "metric": "fd_effnet_lite0_96", "protocol": {"extractor": "effnet-lite0-96"}}
    one = with_space(document({(5, 0.0): 0.3}))
    (found,) = beside_cells(Paper(**{**PAPER, "figures": [space]}), one.cells)
    assert (found.here, found.is_comparable) == (600.0, True)


def test_each_figure_stands_beside_the_cell_that_departs_least():
    cells = document({(5, 0.0): 0.3, (10, 1.0): 0.4}).cells
    figures = [
        {**FIGURE, "metric": "fd_effnet_lite0_64", "protocol": {"steps": steps}} for steps in (5, 10, 7)
    ]
    found = beside_cells(Paper(**{**PAPER, "figures": figures}), cells)
    assert [one.cell for one in found] == ["steps5-eta0", "steps10-eta1", "steps5-eta0"]
    assert [one.is_comparable for one in found] == [True, True, False]


def test_what_all_figures_depart_in_is_told_once():
    paper = open_paper("ddim")
    found = beside_scores(paper, [Seen(ddim_card(num_images=10), {})])
    assert [one.field for one in shared([one.departures for one in found])] == ["num_images"]


def test_anyones_own_file_is_read(tmp_path):
    assert open_paper(written(tmp_path, PAPER)) == Paper(**PAPER)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"figures": []}, "figures"),
        ({"figures": [{**FIGURE, "metric": "FID"}]}, "there is no score 'FID', such as fid"),
        ({"figures": [{**FIGURE, "value": "low"}]}, "value"),
        ({"figures": [{**FIGURE, "value": float("inf")}]}, "value"),
        ({"figures": [{**FIGURE, "value": float("nan")}]}, "value"),
        ({"figures": [{**FIGURE, "protocol": {"stpes": 10}}]}, "protocol.stpes: no card has that field"),
        ({"figures": [{**FIGURE, "protocol": {"steps": [10]}}]}, "steps"),
        ({"figures": [{**FIGURE, "name": ""}]}, "name"),
        ({"figures": [{k: v for k, v in FIGURE.items() if k != "where"}]}, "where"),
        ({"protocol": {"eta": float("nan")}}, "eta"),
        ({"title": None}, "title"),
        ({"least_of": 0}, "least_of"),
        ({"paper": 1}, "paper: unknown key"),
    ],
)
def test_what_is_no_table_of_figures_is_refused_with_its_field(tmp_path, change, words):
    with pytest.raises(UsageError, match="holds no published figures") as refused:
        open_paper(written(tmp_path, {**PAPER, **change}))
    assert words in str(refused.value)
    assert len(str(refused.value)) < 1500


@pytest.mark.parametrize(
    "text", ["", "- a", "a: &b 1\nc: *b", "title: !!python/object:os.system x", "\tx", "title: x\ntitle: y"]
)
def test_text_that_is_no_plain_yaml_of_a_paper_is_refused(tmp_path, text):
    with pytest.raises(UsageError):
        open_paper(written(tmp_path, text))


def test_a_paper_that_is_nowhere_lists_those_there_are(tmp_path):
    with pytest.raises(UsageError, match="give one of adm, ddim, edm, or a YAML file"):
        open_paper(str(tmp_path / "none.yaml"))
    with pytest.raises(DiffctlError, match="cannot be read"):
        open_paper(str(tmp_path))
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(DiffctlError, match="UTF-8"):
        open_paper(str(tmp_path / "x.yaml"))


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 200), st.text(min_size=1, max_size=6))
def test_an_edit_anywhere_is_read_or_refused_in_a_sentence(tmp_path_factory, at, change):
    text = yaml.safe_dump(PAPER)
    path = tmp_path_factory.mktemp("edited") / "paper.yaml"
    path.write_bytes((text[:at] + change + text[at:]).encode(errors="surrogatepass"))
    said = ""
    try:
        assert open_paper(str(path)).figures
    except DiffctlError as error:
        said = str(error)
    assert "\n" not in said
