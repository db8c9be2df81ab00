"""Published figures: the shipped papers, user files, malformed files, and `diffctl evaluate --paper`."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from cli import main
from diffusion.layout import SCORES
from diffusion.papers.paper import (
    PAPERS,
    Paper,
    SpaceScores,
    card_fields,
    compare_cells,
    compare_spaces,
    differences,
    open_paper,
)
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.grid import settings_card
from diffusion.protocol.scores_document import write_scores_document
from diffusion.protocol.settings import SampleSettings
from diffusion.system.errors import DiffctlError, UsageError
from tests.conftest import ROOT
from tests.helpers.scores_document import document

FIGURE = {"name": "ours", "where": "table 1", "metric": "fid", "value": 2.0, "protocol": {"steps": 10}}
PAPER = {"title": "A paper", "source": "arXiv", "protocol": {"num_images": 500}, "figures": [FIGURE]}
METRIC = "fd_effnet_lite0_64"


def written(path, values):
    file = path / "paper.yaml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return str(file)


@pytest.mark.parametrize("name", PAPERS)
def test_every_paper_states_its_protocol(name):
    paper = open_paper(name)
    assert "arXiv" in paper.source
    for figure in paper.figures:
        stated = paper.protocol_of(figure)
        assert {"data", "image_size", "num_images", "extractor", "reference_split", "steps"} <= stated.keys()
        assert {"clip", "spacing"} <= stated.keys()
        assert stated.keys() <= card_fields()
        assert paper.datasets_of(figure)


def test_file_of_the_docs_compares_real_images():
    paper = open_paper(str(ROOT / "docs/evaluation/cifar10-real.yaml"))
    stated = {"num_images": 10_000, "reference_split": "train", "reference_count": 50_000, "data": "cifar10"}
    assert all(paper.protocol_of(figure).items() >= stated.items() for figure in paper.figures)
    assert [figure.value for figure in paper.figures] == [3.2, 3.1]


def test_figures_are_of_the_published_weights_of_their_extractor():
    paper = open_paper("ddim")
    figure, spec = paper.figures[0], EXTRACTORS["inception-v3-compat"]
    stated = paper.protocol_of(figure)
    assert stated["weights_sha256"] == spec.weights.sha256
    assert str(differences(paper, figure, {**stated, "weights_sha256": "a" * 64})[0]) == (
        "weights_sha256 6726825d0af5… (here aaaaaaaaaaaa…)"
    )


def test_table_1_of_ddim_is_complete():
    """2010.02502, table 1, CIFAR-10: rows by η and σ̂, columns by S."""
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


def test_figures_of_adm_and_edm_are_as_published():
    adm: dict[str, list[float]] = {}
    for figure in open_paper("adm").figures:
        adm.setdefault(figure.metric, []).append(figure.value)
    shares = {"precision": [0.74, 0.78, 0.82], "recall": [0.63, 0.59, 0.52]}
    assert adm == {"fid": [2.07, 2.61, 2.92, 2.97, 4.59], **shares}
    edm = open_paper("edm")
    assert [figure.value for figure in edm.figures] == [1.79, 1.79, 1.97, 1.98, 1.36]
    assert edm.least_of == 3


def ddim_card(**changes):
    """The card of a run by DDIM's protocol with S = 10 and η = 0."""
    card = settings_card(SampleSettings(steps=10, spacing="ddim-quadratic", clip=False))
    real = {"data": "cifar10", "image_size": 32, "reference_split": "train", "reference_count": 50_000}
    spec = EXTRACTORS["inception-v3-compat"]
    extractor = {"extractor": spec.name, "weights_sha256": spec.weights.sha256}
    return {**card, **real, "num_images": 50_000, **extractor, **changes}


def test_run_by_the_protocol_is_comparable_with_one_figure():
    found = compare_spaces(open_paper("ddim"), {None: [SpaceScores(ddim_card(), {"fid": 13.0})]})
    assert [one.figure.value for one in found if one.is_comparable] == [13.36]


CHANGES = {"num_images": 10_000, "extractor": "effnet-lite0-64", "eta": 0.2, "data": None, "clip": True}


@pytest.mark.parametrize(("field", "value"), CHANGES.items())
def test_one_differing_field_makes_a_figure_incomparable(field, value):
    paper = open_paper("ddim")
    found = differences(paper, paper.figures[0], ddim_card(**{field: value}))
    assert [(one.field, one.here) for one in found] == [(field, value)]


def test_minimum_of_several_runs_is_never_comparable():
    paper = Paper(**{**PAPER, "least_of": 3})
    (found,) = compare_spaces(paper, {None: [SpaceScores({"num_images": 500, "steps": 10}, {"fid": 1.0})]})
    assert not found.is_comparable
    assert [str(one) for one in found.differences] == ["least of 3 (here 1)"]


def test_figure_uses_the_extractor_with_its_score():
    """One figure needs the first extractor's card, the other a further one's."""
    other = {**FIGURE, "metric": "sfid", "protocol": {"extractor": "inception-v3-spatial"}}
    paper = Paper(
        **{**PAPER, "figures": [{**FIGURE, "protocol": {"extractor": "inception-v3-compat"}}, other]}
    )
    weights = {"weights_sha256": EXTRACTORS["inception-v3-compat"].weights.sha256}
    seen = [
        SpaceScores({"num_images": 500, "extractor": f"inception-v3-{name}", **weights}, scores)
        for name, scores in (("compat", {"fid": 1.0}), ("spatial", {"sfid": 2.0}))
    ]
    found = compare_spaces(paper, {None: seen})
    assert [(one.here, one.is_comparable) for one in found] == [(1.0, True), (2.0, True)]


def test_figure_is_matched_with_the_nearest_cell():
    cells = document({(5, 0.0): 0.3, (10, 1.0): 0.4}).cells
    figures = [{**FIGURE, "metric": METRIC, "protocol": {"steps": steps}} for steps in (5, 10, 7)]
    found = compare_cells(Paper(**{**PAPER, "figures": figures}), cells)
    assert [one.cell for one in found] == ["steps5-eta0", "steps10-eta1", "steps5-eta0"]
    assert [one.is_comparable for one in found] == [True, True, False]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"figures": []}, "figures"),
        ({"figures": [{**FIGURE, "metric": "FID"}]}, "metric"),
        ({"figures": [{**FIGURE, "value": float("nan")}]}, "value"),
        ({"figures": [{**FIGURE, "protocol": {"stpes": 10}}]}, "protocol.stpes"),
        ({"protocol": {"eta": float("nan")}}, "eta"),
        ({"paper": 1}, "paper"),
    ],
)
def test_malformed_figures_are_refused_with_their_field(tmp_path, change, field):
    with pytest.raises(UsageError, match=field):
        open_paper(written(tmp_path, {**PAPER, **change}))


@pytest.mark.parametrize("text", ["", "- a", "title: !!python/object:os.system x", "title: x\ntitle: y"])
def test_malformed_yaml_is_refused(tmp_path, text):
    with pytest.raises(UsageError):
        open_paper(written(tmp_path, text))


def test_missing_or_unreadable_paper_is_refused(tmp_path):
    with pytest.raises(UsageError, match="adm, ddim, edm"):
        open_paper(str(tmp_path / "none.yaml"))
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe")
    for path in (tmp_path, tmp_path / "x.yaml"):
        with pytest.raises(DiffctlError):
            open_paper(str(path))


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A project with scores of a sweep, and a paper on the same data."""
    monkeypatch.chdir(tmp_path)
    write_scores_document(SCORES, document())
    rows = [{"steps": 5, "eta": 0.0}, {"steps": 10, "eta": 0.5}]
    figures = [
        {"name": "theirs", "where": "table 1", "metric": METRIC, "value": 250.0, "protocol": row}
        for row in rows
    ]
    paper = {"title": "A", "source": "B", "protocol": {"num_images": 500}, "figures": figures}
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(paper))


def run(*arguments):
    return CliRunner().invoke(main.app, ["evaluate", *arguments])


def test_command_compares_the_sweep_with_the_paper(sweep):
    lines = run("--paper", "paper.yaml").stdout.splitlines()
    assert [line.split()[-1] for line in lines[:2]] == ["comparable", "yes"]
    assert "no: eta 0.5 (here 0.0)" in lines[2]
    assert lines[-1] == "A, B"


def test_common_differences_are_stated_once(sweep):
    printed = run("--paper", "edm").stdout
    assert printed.count("least of 3 (here 1)") == 1
    assert "none is comparable: the paper has " in printed


def test_json_lists_the_differing_fields(sweep):
    found = json.loads(run("--paper", "paper.yaml", "--json").stdout)
    first, second = found["figures"]
    assert (first["comparable"], first["here"], first["cell"]) == (True, 300.0, "steps5-eta0")
    assert second["mismatches"] == [{"field": "eta", "paper": 0.5, "here": 0.0}]


@pytest.mark.parametrize("arguments", [[], ["images"], ["--against", "images"], ["--paper", "none"]])
def test_wrong_usage_is_refused(arguments):
    assert isinstance(run(*arguments).exception, UsageError)
