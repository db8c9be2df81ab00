import json

import pytest
from typer.testing import CliRunner

from cli import main
from diffusion.choice.certainty import NORMAL
from diffusion.choice.gate import judge
from diffusion.choice.ranking import best, rank_metric
from diffusion.choice.spaces import seen_by
from diffusion.evaluate.features.reference_features import make_reference
from diffusion.evaluate.sweep_scores import write_scores
from diffusion.protocol.grid import SAMPLING_VERSION
from diffusion.protocol.scores import Scored as CellOf
from diffusion.protocol.scores import ScoresDocument, write_document
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_json
from tests.conftest import diffctl
from tests.helpers.digits_sweep import (
    ONE_CELL,
    make_config,
    rewrite,
    score_sweep,
    write_prepared,
    write_sweep,
)
from tests.helpers.scores_document import chance, document, with_errors, with_space
from tracking.compare import compare, load_scored
from tracking.comparison import Scored
from tracking.page import comparison_page

FEW = {(10, 0.0): 0.2}


def scored(**documents: ScoresDocument) -> list[Scored]:
    return [Scored(label, one) for label, one in documents.items()]


def test_equal_protocols_stand_side_by_side():
    worse = document({(5, 0.0): 0.4, (10, 0.0): 0.3}, model_sha256="b" * 64)
    result = compare(scored(a=document(), b=worse))
    assert result.differences == []
    rows = {(row.cell, row.metric): row.values for row in result.rows}
    assert rows == {
        ("steps5-eta0", "kd_effnet_lite0_64"): [0.3, 0.4],
        ("steps5-eta0", "fd_effnet_lite0_64"): [300.0, 400.0],
        ("steps10-eta0", "kd_effnet_lite0_64"): [0.2, 0.3],
        ("steps10-eta0", "fd_effnet_lite0_64"): [200.0, 300.0],
    }


def test_differing_cards_are_never_shown_and_named():
    other = document(FEW, num_images=1000, reference_digest="x" * 64)
    same = document(FEW)
    result = compare(scored(a=document(FEW), b=other, c=same), ["excess"])
    (row,) = result.rows
    assert row.values == [175.0, None, 175.0]
    (difference,) = result.differences
    assert difference.label == "b"
    assert difference.cells == ["steps10-eta0"]
    assert difference.fields == {"num_images": [500, 1000], "reference_digest": ["r" * 64, "x" * 64]}


def test_a_card_without_a_sampling_version_is_of_another_protocol():
    old = document(FEW)
    del old.cells["steps10-eta0"].card["sampling_version"]
    result = compare(scored(a=document(FEW), b=old))
    assert result.rows == []
    assert result.differences[0].fields == {"sampling_version": [SAMPLING_VERSION, None]}
    verdict = judge(document(FEW, model_sha256="b" * 64).cells, old.cells, "version 7")
    assert not verdict.better
    assert f"differs in sampling_version (None against {SAMPLING_VERSION})" in verdict.reason


def test_an_unknown_score_is_refused_with_what_there_is():
    with pytest.raises(UsageError, match="kd_effnet_lite0_64"):
        compare(scored(a=document(), b=document()), ["kid"])


def test_few_images_rank_by_the_unbiased_distance():
    few, many = (
        document(FEW).cells["steps10-eta0"],
        document(FEW, num_images=5000).cells["steps10-eta0"],
    )
    assert rank_metric(few) == "kd_effnet_lite0_64"
    assert rank_metric(many) == "excess"
    del many.scores["excess"], many.scores["floor"]
    assert rank_metric(many) == "fd_effnet_lite0_64"
    scores = {"fid": 1.0, "kid": 0.1, "kid_std": 0.0, "is": 1.0}
    inception = CellOf(scores=scores, card={"num_images": 10, "extractor": "inception-v3-compat"})
    assert rank_metric(inception) == "kid"


def test_only_distances_rank():
    metrics = ["fd_effnet_lite0_64", "kid", "kid_std", "is_effnet_lite0_64", "floor"]
    both = {"a": document(FEW), "b": document(FEW)}
    for one in both.values():
        one.cells["steps10-eta0"].scores.update({"kid": 0.1, "kid_std": 0.1})
        certain(one, *metrics)
    rows = compare(scored(**both), metrics).rows
    assert [row.best for row in rows] == [200.0, 0.1, None, None, None]


def test_without_an_interval_no_number_is_marked_the_best(tmp_path):
    """Precision, recall and the limit have none, and no score where intervals are left out."""
    both = {"a": document(FEW), "b": document({(10, 0.0): 0.3}, model_sha256="b" * 64)}
    precision = "precision_effnet_lite0_64"
    both["a"].cells["steps10-eta0"].scores[precision] = 0.9
    both["b"].cells["steps10-eta0"].scores[precision] = 0.8
    certain(both["a"])
    metrics = [precision, "fd_effnet_lite0_64"]
    assert [row.best for row in compare(scored(**both), metrics).rows] == [None, None]  # b's fd has none
    certain(both["b"])
    result = compare(scored(**both), metrics)
    assert [row.best for row in result.rows] == [None, 200.0]
    assert '<td class="best">200' in (page := comparison_page(result))
    assert '<td class="best">0.9' not in page
    assert "No best is marked where a number has no confidence interval" in page
    assert [row.ranks for row in compare(scored(**both), [*metrics, "floor"]).rows] == [True, True, False]
    for name, one in both.items():
        write_document(tmp_path / f"{name}.json", one)
    runs = [str(tmp_path / f"{name}.json") for name in both]
    done = CliRunner().invoke(main.app, ["compare", *runs, "--metric", precision])
    assert done.exit_code == 0
    assert "<" not in done.stdout
    assert "no best is marked where a number has no confidence interval" in done.stdout


def test_a_score_that_no_comparable_run_has_is_said_to_be_missing():
    """Two runs agree and lack it; a third has it under another card."""
    third = document(FEW, seed=1)
    third.cells["steps10-eta0"].scores["fid"] = 3.0
    runs = scored(a=document(FEW), b=document(FEW), c=third)
    with pytest.raises(UsageError, match=r"none of the runs that can be compared .* has the score 'fid'"):
        compare(runs, ["fid"])
    with pytest.raises(UsageError, match="fid"):
        compare(runs, ["excess", "fid"])


def test_a_row_without_any_value_is_left_out():
    both = {"a": document(), "b": document()}
    for one in both.values():
        del one.cells["steps5-eta0"].scores["excess"]
    del both["a"].cells["steps10-eta0"].scores["excess"]
    rows = compare(scored(**both), ["excess"]).rows
    assert [row.cell for row in rows] == ["steps5-eta1", "steps10-eta0", "steps10-eta1"]
    assert rows[1].values == [None, 175.0]


LIMIT = "fd_effnet_lite0_64_inf"


def with_limit(value, count, **card):
    """A document of one cell of `count` images, with a limit for N → ∞."""
    of_count = {"kid_subset_size": count // 2, "is_splits": 10, "prc_images": count}
    one = document(FEW, num_images=count, **of_count, **card)
    one.cells["steps10-eta0"].scores[LIMIT] = value
    return one


def test_limits_of_other_numbers_of_images_stand_side_by_side(tmp_path):
    few, many, other = with_limit(90.0, 500), with_limit(80.0, 1280), with_limit(70.0, 1280, seed=1)
    result = compare(scored(a=many, b=few, c=other), [LIMIT])
    (row,) = result.rows
    assert row.values == [80.0, 90.0, None]
    assert row.few_images == [False, True, False]  # 1,280 features
    assert row.best is None
    (difference,) = result.differences
    assert (difference.label, difference.fields) == ("c", {"seed": [0, 1]})
    assert "90 *" in (page := comparison_page(result))
    assert "fewer images than there are features" in page
    both = compare(scored(a=many, b=few), ["excess", LIMIT])
    assert [row.metric for row in both.rows] == [LIMIT]  # all others depend on how many there are
    assert both.differences[0].fields["num_images"] == [1280, 500]
    for name, one in (("a", many), ("b", few)):
        write_document(tmp_path / f"{name}.json", one)
    runs = [str(tmp_path / f"{name}.json") for name in "ab"]
    done = CliRunner().invoke(main.app, ["compare", *runs, "--metric", LIMIT])
    assert done.exit_code == 0
    assert "90 *" in done.stdout
    assert "* of fewer images than there are features" in done.stdout
    assert CliRunner().invoke(main.app, ["compare", *runs]).exit_code != 0


def test_the_best_cell_takes_the_fewest_steps_of_equal_ones():
    cells = document({(50, 0.0): 0.1, (20, 1.0): 0.1, (5, 0.0): 0.2}).cells
    assert best(cells) == ("steps20-eta1", "kd_effnet_lite0_64", 0.1)


def certain(one: ScoresDocument, *metrics: str) -> ScoresDocument:
    """The document with intervals for some scores, by default those of both distances."""
    for cell in one.cells.values():
        for metric in metrics or ("fd_effnet_lite0_64", "kd_effnet_lite0_64"):
            with_errors(cell, metric, chance(0, 0.1 / NORMAL * cell.scores[metric]))
    return one


def with_intervals(values: float, half: float) -> ScoresDocument:
    """A document of one cell whose kernel distance is known to within `half`, by errors of its own."""
    one = document({(10, 0.0): values})
    errors = chance(round(100 * values), half / NORMAL)
    with_errors(one.cells["steps10-eta0"], "kd_effnet_lite0_64", errors)
    return one


def test_a_gap_inside_the_interval_is_marked_as_such(tmp_path):
    near, far = with_intervals(0.22, 0.03), with_intervals(0.3, 0.03)
    best = with_intervals(0.2, 0.03)
    (row, other) = compare(scored(a=near, b=best, c=far)).rows
    assert row.best == 0.2
    assert row.tied == [True, False, False]
    assert row.intervals[0] == pytest.approx((0.19, 0.25))
    assert other.tied == [False] * 3  # there is no interval of this score
    assert other.best is None
    for name, one in (("a", near), ("b", best), ("c", far)):
        write_document(tmp_path / f"{name}.json", one)
    done = diffctl(tmp_path, "compare", "a.json", "b.json", "c.json", "--html", "page.html")
    assert done.returncode == 0, done.stderr
    assert "0.22 ≈" in done.stdout
    assert "0.2 <" in done.stdout
    assert "inside its confidence interval" in done.stdout
    assert "gaps to the best are paired by image" in done.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "≈ 0.22" in page
    assert "Gaps to the best are paired by image." in page
    assert "0.19 to 0.25" in page
    assert "http" not in page


def test_the_page_names_what_was_left_out_and_escapes_names(tmp_path):
    left_out = document(FEW, seed=1)
    page = comparison_page(compare(scored(**{"<b>a</b>": document(FEW), "b": document(FEW), "c": left_out})))
    assert "&lt;b&gt;a&lt;/b&gt;" in page
    assert '<th scope="row">seed</th>' in page
    assert "c: steps10-eta0" in page
    nothing = comparison_page(compare(scored(a=document(FEW), b=left_out)))
    assert "Nothing here can be compared" in nothing


@pytest.mark.slow
def test_only_one_edited_image_makes_numbers_incomparable(tmp_path):
    """From the images to the refusal: the reference's digest is in every card."""
    config = make_config(sweep=ONE_CELL)
    prepared = write_prepared(tmp_path / "prepared")
    write_sweep(tmp_path / "samples", config)
    for name in ("before", "after"):
        make_reference(config.evaluate, prepared, tmp_path / "reference")
        scores = score_sweep(config, tmp_path / "samples", tmp_path / "reference", prepared=prepared)
        write_scores(scores, tmp_path / f"{name}.json", tmp_path / "scores.csv")
        rewrite(prepared / "train")
    with pytest.raises(DiffctlError, match="stale"):
        score_sweep(config, tmp_path / "samples", tmp_path / "reference", prepared=prepared)
    refused = diffctl(tmp_path, "compare", "before.json", "after.json")
    assert refused.returncode == 1
    assert "the cards differ in reference_digest" in refused.stderr


def test_a_file_without_scores_is_refused(tmp_path):
    write_json(tmp_path / "empty.json", {"cells": {}})
    for name, says in {"empty.json": "of another format", "missing.json": "no scores at"}.items():
        with pytest.raises(DiffctlError, match=says):
            load_scored(str(tmp_path / name))


def test_the_command(tmp_path):
    write_document(tmp_path / "a.json", certain(document()))
    write_document(tmp_path / "b.json", certain(document({(5, 0.0): 0.1}, model_sha256="b" * 64)))
    write_document(tmp_path / "c.json", document(seed=1))
    done = diffctl(tmp_path, "compare", "a.json", "b.json", "c.json")
    assert done.returncode == 0, done.stderr
    assert "0.1 <" in done.stdout
    assert "c.json: 4 cell(s) left out, the cards differ in seed (0 against 1)" in done.stdout
    values = json.loads(diffctl(tmp_path, "compare", "a.json", "b.json", "--json").stdout)
    assert values["scores"][0] == {
        "cell": "steps5-eta0",
        "metric": "kd_effnet_lite0_64",
        "values": [0.3, 0.1],
        "trainings": [1, 1],
        "each": [[0.3], [0.1]],
        "deviations": [None, None],
        "intervals": [pytest.approx([0.27, 0.33]), pytest.approx([0.09, 0.11])],
        "few_images": [False, False],
        "best": 0.1,
        "gaps": [
            {
                "value": pytest.approx(0.2),
                "half": pytest.approx(0.02, rel=0.05),
                "between": "pairs of images",
            },
            None,
        ],
        "tied": [False, False],
    }
    refused = diffctl(tmp_path, "compare", "a.json", "c.json")
    assert refused.returncode == 1
    assert "seed (0 against 1)" in refused.stderr
    assert diffctl(tmp_path, "compare", "a.json").returncode == 2


def seeds(values: dict[int, float], setting: str) -> dict[str, ScoresDocument]:
    """Trainings of one setting by seed, each a document of one cell with that kernel distance."""
    made = {}
    for seed, value in values.items():
        one = certain(document({(10, 0.0): value}, model_sha256=f"{setting}{seed}".ljust(64, "0")))
        training = {"setting": setting * 16, "seed": seed}
        made[f"{setting}{seed}"] = ScoresDocument(**{**dict(one), "training": training})
    return made


def test_trainings_that_differ_in_the_seed_alone_are_one_column(tmp_path):
    near = {**seeds({0: 0.20, 1: 0.24}, "a"), **seeds({0: 0.21, 1: 0.25, 2: 0.23}, "b")}
    result = compare(scored(**near))
    assert result.labels == ["a0 ×2", "b0 ×3"]
    assert result.members == [["a0", "a1"], ["b0", "b1", "b2"]]
    row = result.rows[0]
    assert row.values == pytest.approx([0.22, 0.23])
    assert row.deviations == pytest.approx([0.0283, 0.02], abs=1e-4)
    assert row.tied == [False, True]
    assert row.gaps[1].between == "trainings"
    far = {**seeds({0: 0.20, 1: 0.21}, "a"), **seeds({0: 0.31, 1: 0.32, 2: 0.32}, "b")}
    assert compare(scored(**far)).rows[0].tied == [False, False]
    assert compare(scored(**near), apart=True).labels == ["a0", "a1", "b0", "b1", "b2"]
    for name, one in near.items():
        write_document(tmp_path / f"{name}.json", one)
    runs = [str(tmp_path / f"{name}.json") for name in near]
    done = CliRunner().invoke(main.app, ["compare", *runs, "--html", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert "0.22 ± 0.028 <" in done.stdout
    assert "0.23 ± 0.02 ≈" in done.stdout
    assert "mean ± standard deviation of" in done.stdout
    assert "gaps to the best are between trainings of other seeds" in done.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "≈ 0.23 ± 0.02" in page
    assert "differ in the training&#39;s seed alone" in page.replace("training's", "training&#39;s")


def test_of_one_seed_and_of_another_protocol_nothing_is_averaged():
    twice = {**seeds({0: 0.2}, "a"), "again": seeds({0: 0.3}, "a")["a0"]}
    assert compare(scored(**twice)).labels == ["a0", "again"]
    trainings = seeds({0: 0.2, 1: 0.3, 2: 0.4}, "a")
    for cell in trainings["a2"].cells.values():
        cell.card["seed"] = 7
    result = compare(scored(**trainings))
    assert result.rows[0].values == pytest.approx([0.25])
    assert result.rows[0].trainings == [2]
    assert [one.label for one in result.differences] == ["a2"]
    assert result.labels == ["a0 ×3"]


def test_every_feature_space_is_compared_by_its_own_cards():
    ours, theirs = with_space(document(FEW)), with_space(document({(10, 0.0): 0.3}, model_sha256="b" * 64), 3)
    rows = {row.metric: row.values for row in compare(scored(a=ours, b=theirs)).rows}
    assert rows == {
        "kd_effnet_lite0_64": [0.2, 0.3],
        "fd_effnet_lite0_64": [200.0, 300.0],
        "kd_effnet_lite0_96": [0.4, pytest.approx(0.9)],
        "fd_effnet_lite0_96": [400.0, 900.0],
    }


def test_a_score_of_a_further_space_is_asked_for_by_its_name():
    ours, theirs = with_space(document(FEW)), with_space(document({(10, 0.0): 0.3}, model_sha256="b" * 64))
    rows = compare(scored(a=ours, b=theirs), ["excess_effnet_lite0_96", "excess"]).rows
    assert {row.metric: row.values for row in rows} == {
        "excess": [175.0, 275.0],
        "excess_effnet_lite0_96": [350.0, 550.0],
    }
    with pytest.raises(UsageError, match="excess_effnet_lite0_96"):
        compare(scored(a=ours, b=theirs), ["nothing"])


def test_weights_of_one_space_make_that_one_alone_incomparable():
    ours, theirs = with_space(document(FEW)), with_space(document(FEW), weights_sha256="x" * 64)
    result = compare(scored(a=ours, b=theirs))
    assert {row.metric for row in result.rows} == {"kd_effnet_lite0_64", "fd_effnet_lite0_64"}
    (difference,) = result.differences
    assert difference.label == "b in effnet-lite0-96"
    assert difference.fields == {"weights_sha256": ["v" * 64, "x" * 64]}


def test_a_document_without_the_space_is_compared_in_the_others():
    rows = compare(scored(a=with_space(document(FEW)), b=document(FEW), c=with_space(document(FEW)))).rows
    values = {row.metric: row.values for row in rows}
    assert values["kd_effnet_lite0_64"] == [0.2, 0.2, 0.2]
    assert values["kd_effnet_lite0_96"] == [0.4, None, 0.4]
    alone = compare(scored(a=with_space(document(FEW)), b=document(FEW)))
    assert {row.metric for row in alone.rows} == {"kd_effnet_lite0_64", "fd_effnet_lite0_64"}
    assert alone.differences == []


def test_what_one_sees_first_another_may_see_too():
    """Documents whose first extractors differ are compared where both have one."""
    other = seen_by(with_space(document(FEW)), "effnet-lite0-96")
    result = compare(scored(a=with_space(document(FEW)), b=other))
    assert {row.metric: row.values for row in result.rows} == {
        "kd_effnet_lite0_96": [0.4, 0.4],
        "fd_effnet_lite0_96": [400.0, 400.0],
    }
    assert "extractor" in result.differences[0].fields
