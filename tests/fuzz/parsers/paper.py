"""A YAML file of published figures, and a comparison with them."""

from functools import cache
from pathlib import Path

import yaml

from diffusion.papers.paper import compare_cells, open_paper, shared_differences
from tests.helpers.scores_document import document

NAME = "paper.yaml"


@cache
def seeds() -> list[bytes]:
    """Return a minimal and a complete file."""
    figure = {"name": "a", "where": "table 1", "metric": "fid", "value": 2.5}
    plain = {"title": "A", "source": "B", "figures": [figure]}
    rich = {
        **plain,
        "note": "n",
        "least_of": 3,
        "protocol": {"data": "cifar10", "num_images": 50_000, "clip": True, "noise": None},
        "figures": [{**figure, "beside": ["digits"], "protocol": {"steps": 10, "eta": 0.5}}, figure],
    }
    return [yaml.safe_dump(values).encode() for values in (plain, rich)]


@cache
def _cells():
    return document().cells


def parse(path: Path) -> None:
    """Read it and compare it with a sweep."""
    found = compare_cells(open_paper(str(path)), _cells())
    shared_differences([one.differences for one in found])
    for one in found:
        one.as_json(), [str(departure) for departure in one.differences]
