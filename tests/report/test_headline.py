"""The headline of a report."""

from types import SimpleNamespace
from typing import Any

import pytest

from diffusion.choice.confidence import NORMAL
from diffusion.config import parse
from diffusion.report.page_content import _lineage
from diffusion.report.score_tables import headline
from tests.conftest import params
from tests.helpers.scores_document import chance, document, with_errors

KERNEL = "kd_effnet_lite0_64"
CELLS = {(5, 0.0): 0.3, (10, 0.0): 0.22, (20, 0.0): 0.2, (50, 0.0): 0.21}


def certain(half: float):
    """Return cells with independent errors and intervals of that half width."""
    one = document(CELLS)
    for number, cell in enumerate(one.cells.values()):
        with_errors(cell, KERNEL, chance(number, half / NORMAL))
    return one


@pytest.mark.parametrize(
    ("half", "rest"),
    [
        (
            0.03,
            "2 others are statistically tied with it: "
            "the cheapest 10 steps, η = 0, for 10 NFE per image instead of 20.",
        ),
        (0.01, "one other is statistically tied with it."),
    ],
)
def test_a_tied_cell_is_not_called_the_best(half, rest):
    one = certain(half)
    assert headline(one) == (f"Of 4 cells, 20 steps, η = 0 has the lowest KD, and {rest}")


@pytest.mark.parametrize("one", [certain(0.001), document(CELLS)], ids=["significant", "no intervals"])
def test_headline_names_only_the_best_without_a_tie(one):
    assert headline(one) == "Of 4 cells, 20 steps, η = 0 is the best by KD."


def test_single_cell_is_not_called_best():
    one = document({(10, 0.0): 0.2})
    assert headline(one) == "One cell was sampled: 10 steps, η = 0."


def rows(lineage: list[dict[str, Any]], start: dict[str, Any] | None) -> list[tuple[str, str]]:
    meta = {"count": 1, "digest": "0" * 64, "name": "cell", "classes": [], "card": {}, "lineage": lineage}
    config = parse(params(train={"init_from": start}), "test")
    return _lineage(SimpleNamespace(config=config, best=SimpleNamespace(meta=meta)))  # type: ignore[arg-type]


def test_lineage_lists_the_nearest_model_first() -> None:
    assert rows([], None) == []
    near = {"sha256": "b" * 64, "data": "clothes", "digest": "c" * 64, "step": 2800}
    far = {"sha256": "d" * 64, "data": "photos", "digest": "file:e", "step": 0}
    start = {"sha256": "b" * 64, "freeze": ["encoder", "time.0"], "lr_scale": 0.1}
    assert rows([near, far], start) == [
        ("started from", "bbbbbbbbbbbbbbbb: 2,800 steps of clothes (cccccccccccccccc)"),
        ("before that", "dddddddddddddddd: 0 steps of photos (file:e)"),
        ("frozen", "encoder, time.0"),
        ("rate of what was there", "0.1 of the learning rate"),
    ]
