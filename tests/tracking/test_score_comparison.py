"""Comparing scores: only numbers with equal protocol cards share a row."""

import json

import pytest
from typer.testing import CliRunner

from cli import main
from diffusion.choice.confidence import NORMAL
from diffusion.choice.ranking import best_cell, rank_metric
from diffusion.choice.selection import scores_in_space
from diffusion.protocol.scores_document import ImageScores as CellOf
from diffusion.protocol.scores_document import ScoresDocument, write_scores_document
from diffusion.system.errors import UsageError
from tests.helpers.scores_document import certain, chance, document, of_seed, with_errors, with_space
from tracking.comparison.comparison_page import render_comparison
from tracking.comparison.score_comparison import ScoredRun, compare

FEW = {(10, 0.0): 0.2}
CELL = "steps10-eta0"
FD, KD = "fd_effnet_lite0_64", "kd_effnet_lite0_64"
LIMIT = f"{FD}_inf"


def scored(**documents: ScoresDocument) -> list[ScoredRun]:
    return [ScoredRun(label, one) for label, one in documents.items()]


def values_of(result) -> dict:
    return {row.metric: row.values for row in result.rows}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A function that writes documents to files and runs `diffctl compare` on them."""
    monkeypatch.chdir(tmp_path)

    def compare_files(*options: str, **documents: ScoresDocument):
        for name, one in documents.items():
            write_scores_document(tmp_path / f"{name}.json", one)
        return CliRunner().invoke(main.app, ["compare", *(f"{name}.json" for name in documents), *options])

    return compare_files


def test_different_cards_are_left_out_with_their_fields():
    other = document(FEW, num_images=1000, reference_digest="x" * 64)
    result = compare(scored(a=document(FEW), b=other, c=document(FEW)), ["excess"])
    assert values_of(result) == {"excess": [175.0, None, 175.0]}
    (difference,) = result.differences
    assert (difference.label, difference.cells) == ("b", [CELL])
    assert difference.fields == {"num_images": [500, 1000], "reference_digest": ["r" * 64, "x" * 64]}


def test_score_that_ranks_depends_on_the_number_of_images():
    few, many = (document(FEW, num_images=count).cells[CELL] for count in (500, 5000))
    assert (rank_metric(few), rank_metric(many)) == (KD, "excess")
    del many.scores["excess"], many.scores["floor"]
    assert rank_metric(many) == FD
    compat = {"num_images": 10, "extractor": "inception-v3-compat"}
    assert rank_metric(CellOf(scores={"fid": 1.0, "kid": 0.1}, card=compat)) == "kid"
    cells = document({(50, 0.0): 0.1, (20, 1.0): 0.1, (5, 0.0): 0.2}).cells
    assert best_cell(cells) == ("steps20-eta1", KD, 0.1), "the fewest steps win a tie"


def test_value_without_an_interval_is_never_marked_best():
    """Precision, recall and the limit have no interval, nor any score that was computed without errors."""
    both = {"a": document(FEW), "b": document({(10, 0.0): 0.3}, model_sha256="b" * 64)}
    precision = "precision_effnet_lite0_64"
    for one, value in zip(both.values(), (0.9, 0.8), strict=True):
        one.cells[CELL].scores[precision] = value
    certain(both["a"])
    metrics = [precision, FD]
    assert [row.best for row in compare(scored(**both), metrics).rows] == [None, None]
    certain(both["b"])
    result = compare(scored(**both), [*metrics, "floor"])
    assert [row.best for row in result.rows] == [None, 200.0, None]
    assert [row.ranks for row in result.rows] == [True, True, False]
    page = render_comparison(result)
    assert '<td class="best">200' in page
    assert '<td class="best">0.9' not in page


def test_unknown_and_missing_scores_are_refused():
    third = document(FEW, seed=1)
    third.cells[CELL].scores["fid"] = 3.0
    runs = scored(a=document(FEW), b=document(FEW), c=third)
    for metrics in (["fid"], ["excess", "fid"], ["kid"]):
        with pytest.raises(UsageError, match=f"'{metrics[-1]}'"):
            compare(runs, metrics)


def with_limit(value, count, **card):
    """Return a document of one cell of `count` images, with a limit for N → ∞."""
    of_count = {"kid_subset_size": count // 2, "is_splits": 10, "prc_images": count}
    one = document(FEW, num_images=count, **of_count, **card)
    one.cells[CELL].scores[LIMIT] = value
    return one


def test_limits_of_different_numbers_of_images_are_comparable(command):
    few, many, other = with_limit(90.0, 500), with_limit(80.0, 1280), with_limit(70.0, 1280, seed=1)
    result = compare(scored(a=many, b=few, c=other), [LIMIT])
    (row,) = result.rows
    assert row.values == [80.0, 90.0, None]
    assert row.few_images == [False, True, False], "the extractor has 1,280 features"
    assert row.best is None
    assert [(one.label, one.fields) for one in result.differences] == [("c", {"seed": [0, 1]})]
    assert "90 *" in render_comparison(result)
    both = compare(scored(a=many, b=few), ["excess", LIMIT])
    assert [row.metric for row in both.rows] == [LIMIT], "all other scores depend on the number of images"
    assert both.differences[0].fields["num_images"] == [1280, 500]
    assert "90 *" in command("--metric", LIMIT, a=many, b=few).stdout


def with_interval(value: float, half: float) -> ScoresDocument:
    """Return a document of one cell; its kernel distance has its own errors and this interval."""
    one = document({(10, 0.0): value})
    with_errors(one.cells[CELL], KD, chance(round(100 * value), half / NORMAL))
    return one


def test_gap_inside_its_interval_is_marked(command, tmp_path):
    near, best_cell, far = with_interval(0.22, 0.03), with_interval(0.2, 0.03), with_interval(0.3, 0.03)
    row, other = compare(scored(a=near, b=best_cell, c=far)).rows
    assert (row.best, row.tied) == (0.2, [True, False, False])
    assert row.intervals[0] == pytest.approx((0.19, 0.25))
    assert (other.best, other.tied) == (None, [False] * 3), "this score has no interval"
    done = command("--html", "page.html", a=near, b=best_cell, c=far)
    assert "0.22 ≈" in done.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "≈ 0.22" in page
    assert "0.19 to 0.25" in page


def test_command_prints_a_table_and_json(command):
    a, b = certain(document()), certain(document({(5, 0.0): 0.1}, model_sha256="b" * 64))
    done = command(a=a, b=b, c=document(seed=1))
    assert done.exit_code == 0, done.output
    assert "0.1 <" in done.stdout
    assert "seed (0 against 1)" in done.stdout
    about = pytest.approx
    gap = {"value": about(0.2), "half": about(0.02, rel=0.05), "between": "pairs of images"}
    assert json.loads(command("--json", a=a, b=b).stdout)["scores"][0] == {
        "cell": "steps5-eta0",
        "metric": KD,
        "values": [0.3, 0.1],
        "trainings": [1, 1],
        "each": [[0.3], [0.1]],
        "deviations": [None, None],
        "intervals": [about([0.27, 0.33]), about([0.09, 0.11])],
        "few_images": [False, False],
        "best": 0.1,
        "gaps": [gap, None],
        "tied": [False, False],
    }
    refused = command(a=a, c=document(seed=1)).exception
    assert isinstance(refused, UsageError)
    assert "seed (0 against 1)" in str(refused)
    assert isinstance(command(a=a).exception, UsageError)


def seeds(values: dict[int, float], setting: str) -> dict[str, ScoresDocument]:
    """Return a document of one cell with each seed's kernel distance, by setting and seed."""
    return {
        f"{setting}{seed}": of_seed({(10, 0.0): value}, setting, seed, half=0.1)
        for seed, value in values.items()
    }


def test_seeds_of_one_setting_are_one_column(command):
    near = {**seeds({0: 0.20, 1: 0.24}, "a"), **seeds({0: 0.21, 1: 0.25, 2: 0.23}, "b")}
    result = compare(scored(**near))
    assert result.labels == ["a0 ×2", "b0 ×3"]
    assert result.as_json()["members"] == [["a0", "a1"], ["b0", "b1", "b2"]]
    row = result.rows[0]
    assert row.values == pytest.approx([0.22, 0.23])
    assert row.deviations == pytest.approx([0.0283, 0.02], abs=1e-4)
    assert row.tied == [False, True]
    assert row.gaps[1].between == "trainings"
    far = {**seeds({0: 0.20, 1: 0.21}, "a"), **seeds({0: 0.31, 1: 0.32, 2: 0.32}, "b")}
    assert compare(scored(**far)).rows[0].tied == [False, False]
    assert compare(scored(**near), apart=True).labels == ["a0", "a1", "b0", "b1", "b2"]
    done = command(**near)
    assert done.exit_code == 0, done.output
    assert "0.22 ± 0.028 <" in done.stdout
    assert "0.23 ± 0.02 ≈" in done.stdout
    assert "≈ 0.23 ± 0.02" in render_comparison(result)


def test_equal_seeds_and_other_protocols_are_not_averaged():
    twice = {**seeds({0: 0.2}, "a"), "again": seeds({0: 0.3}, "a")["a0"]}
    assert compare(scored(**twice)).labels == ["a0", "again"]
    trainings = seeds({0: 0.2, 1: 0.3, 2: 0.4}, "a")
    for cell in trainings["a2"].cells.values():
        cell.card["seed"] = 7
    result = compare(scored(**trainings))
    assert (result.rows[0].values, result.rows[0].trainings) == (pytest.approx([0.25]), [2])
    assert [one.label for one in result.differences] == ["a2"]
    assert result.labels == ["a0 ×3"]


def test_feature_spaces_are_compared_by_their_own_cards():
    ours, theirs = with_space(document(FEW)), with_space(document({(10, 0.0): 0.3}, model_sha256="b" * 64), 3)
    assert values_of(compare(scored(a=ours, b=theirs))) == {
        KD: [0.2, 0.3],
        FD: [200.0, 300.0],
        "kd_effnet_lite0_96": [0.4, pytest.approx(0.9)],
        "fd_effnet_lite0_96": [400.0, 900.0],
    }
    assert values_of(compare(scored(a=ours, b=theirs), ["excess_effnet_lite0_96", "excess"])) == {
        "excess": [175.0, 275.0],
        "excess_effnet_lite0_96": [350.0, 825.0],
    }
    result = compare(scored(a=ours, b=with_space(document(FEW), weights_sha256="x" * 64)))
    assert values_of(result).keys() == {KD, FD}
    (difference,) = result.differences
    assert difference.label == "b in effnet-lite0-96"
    assert difference.fields == {"weights_sha256": ["v" * 64, "x" * 64]}


def test_documents_are_compared_in_the_feature_spaces_that_they_share():
    ours = with_space(document(FEW))
    values = values_of(compare(scored(a=ours, b=document(FEW), c=ours)))
    assert (values[KD], values["kd_effnet_lite0_96"]) == ([0.2, 0.2, 0.2], [0.4, None, 0.4])
    alone = compare(scored(a=ours, b=document(FEW)))
    assert (values_of(alone).keys(), alone.differences) == ({KD, FD}, [])
    result = compare(scored(a=ours, b=scores_in_space(with_space(document(FEW)), "effnet-lite0-96")))
    assert values_of(result) == {"kd_effnet_lite0_96": [0.4, 0.4], "fd_effnet_lite0_96": [400.0, 400.0]}
    assert "extractor" in result.differences[0].fields
