"""The benchmark of large sets computes every score and interval that there is."""

import pytest

from benchmarks.large import measure
from diffusion.protocol.extractors import EXTRACTORS


@pytest.mark.slow
def test_all_scores_and_intervals_are_measured():
    spec = EXTRACTORS["effnet-lite0-64"]
    found = set(measure(spec, 60).scores)
    shares = {spec.named(name) for name in ("precision", "recall", "density", "coverage")}
    others = {spec.distance, spec.limit, spec.kernel_distance, spec.score, "floor", "excess", "memorisation"}
    ends = {
        f"{name}_{end}" for name in (spec.distance, spec.kernel_distance, "excess") for end in ("low", "high")
    }
    assert shares | others | ends < found
