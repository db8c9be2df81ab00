"""The report lists the pretrained models of a training."""

from types import SimpleNamespace
from typing import Any

from diffusion.config import parse
from diffusion.report.page_content import _lineage
from tests.conftest import params


def rows(lineage: list[dict[str, Any]], start: dict[str, Any] | None) -> list[tuple[str, str]]:
    meta = {"count": 1, "digest": "0" * 64, "name": "cell", "classes": [], "card": {}, "lineage": lineage}
    config = parse(params(train={"start": start}), "test")
    return _lineage(SimpleNamespace(config=config, best=SimpleNamespace(meta=meta)))  # type: ignore[arg-type]


def test_training_from_scratch_has_no_lineage() -> None:
    assert rows([], None) == []


def test_lineage_lists_the_nearest_model_first() -> None:
    near = {"sha256": "b" * 64, "data": "clothes", "digest": "c" * 64, "step": 2800}
    far = {"sha256": "d" * 64, "data": "photos", "digest": "file:e", "step": 0}
    start = {"sha256": "b" * 64, "freeze": ["encoder", "time.0"], "lr_scale": 0.1}
    assert rows([near, far], start) == [
        ("started from", "bbbbbbbbbbbbbbbb: 2,800 steps of clothes (cccccccccccccccc)"),
        ("before that", "dddddddddddddddd: 0 steps of photos (file:e)"),
        ("frozen", "encoder, time.0"),
        ("rate of what was there", "0.1 of the learning rate"),
    ]
