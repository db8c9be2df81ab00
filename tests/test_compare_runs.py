import json

import pytest

from diffusion.errors import UsageError
from diffusion.evaluation.ranking import best, rank_metric
from diffusion.files import write_json
from tests.conftest import diffctl
from tests.scores_document import document
from tracking.compare import Scored, compare, load_scored

FEW = {(10, 0.0): 0.2}


def scored(**documents: dict) -> list[Scored]:
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


def test_an_unknown_score_is_refused_with_what_there_is():
    with pytest.raises(UsageError, match="kd_effnet_lite0_64"):
        compare(scored(a=document(), b=document()), ["kid"])


def test_few_images_rank_by_the_unbiased_distance():
    few, many = (
        document(FEW)["cells"]["steps10-eta0"],
        document(FEW, num_images=5000)["cells"]["steps10-eta0"],
    )
    assert rank_metric(few) == "kd_effnet_lite0_64"
    assert rank_metric(many) == "excess"
    del many["scores"]["excess"], many["scores"]["floor"]
    assert rank_metric(many) == "fd_effnet_lite0_64"
    inception = {"scores": {"fid": 1.0, "kid": 0.1, "kid_std": 0.0, "is": 1.0}}
    inception["card"] = {"num_images": 10, "extractor": "inception-v3-compat"}
    assert rank_metric(inception) == "kid"


def test_only_distances_rank():
    metrics = ["fd_effnet_lite0_64", "kid", "kid_std", "is_effnet_lite0_64", "floor"]
    both = {"a": document(FEW), "b": document(FEW)}
    for one in both.values():
        one["cells"]["steps10-eta0"]["scores"] |= {"kid": 0.1, "kid_std": 0.1}
    rows = compare(scored(**both), metrics).rows
    assert [row.best for row in rows] == [200.0, 0.1, None, None, None]


def test_the_best_cell_takes_the_fewest_steps_of_equal_ones():
    cells = document({(50, 0.0): 0.1, (20, 1.0): 0.1, (5, 0.0): 0.2})["cells"]
    assert best(cells) == ("steps20-eta1", "kd_effnet_lite0_64", 0.1)


def test_a_file_without_scores_is_refused(tmp_path):
    write_json(tmp_path / "empty.json", {"cells": {}})
    for name in ("empty.json", "missing.json"):
        with pytest.raises(UsageError, match="holds no scores"):
            load_scored(str(tmp_path / name))


def test_the_command(tmp_path):
    write_json(tmp_path / "a.json", document())
    write_json(tmp_path / "b.json", document({(5, 0.0): 0.1}, model_sha256="b" * 64))
    write_json(tmp_path / "c.json", document(seed=1))
    done = diffctl(tmp_path, "compare", "a.json", "b.json", "c.json")
    assert done.returncode == 0, done.stderr
    assert "0.1 <" in done.stdout
    assert "c.json: 4 cell(s) left out, the cards differ in seed (0 against 1)" in done.stdout
    values = json.loads(diffctl(tmp_path, "compare", "a.json", "b.json", "--json").stdout)
    assert values["scores"][0] == {
        "cell": "steps5-eta0",
        "metric": "kd_effnet_lite0_64",
        "values": [0.3, 0.1],
    }
    refused = diffctl(tmp_path, "compare", "a.json", "c.json")
    assert refused.returncode == 1
    assert "seed (0 against 1)" in refused.stderr
    assert diffctl(tmp_path, "compare", "a.json").returncode == 2
