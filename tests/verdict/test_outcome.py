"""The sentences of a verdict, and the number of images that it needs."""

import math
from dataclasses import replace

import pytest

from diffusion.choice.paired_test import PairedTest
from diffusion.verdict.outcome import Pair, SamplingOutcome, TrainingOutcome, needed_images
from diffusion.verdict.page import render_verdict
from tests.helpers.scores_document import certain, document

FD, KD = "fd", "kd"


def outcome(fd: list[float], kd: list[float] | None = None, last: int = 12) -> TrainingOutcome:
    """Return an outcome with these differences."""
    differences = zip(fd, kd or fd, strict=True)
    pairs = tuple(
        Pair(seed, {FD: 100.0, KD: 1.0}, {FD: 100 + a, KD: 1 + b}) for seed, (a, b) in enumerate(differences)
    )
    test = PairedTest(3, last)
    return TrainingOutcome("lr=1", (), (FD, KD), test.error, test=test, pairs=pairs)


def test_sentences() -> None:
    assert (
        outcome([-30.0, -31.0, -32.0]).sentence(1080)
        == "better by 31.0 ± 5.5 (95%) after 3 pairs in 18.0 min: keep it"
    )
    assert outcome([30.0, 31.0, 32.0]).sentence() == "worse by 31.0 ± 5.5 (95%) after 3 pairs: leave it out"
    undecided = outcome([-12.0, 9.0, -3.0, 2.0])
    assert undecided.kind == "no evidence"
    assert undecided.is_open
    found = undecided.main
    assert found.detectable is not None
    assert undecided.sentence() == (
        f"no evidence after 4 pairs: between {found.half - 1:.0f} worse and {found.half + 1:.0f} better; "
        f"a gap of {found.detectable:.0f} would have been found in 80% of cases"
    )
    equal = outcome([0.0, 0.0, 0.0])
    assert equal.sentence().startswith("no difference after 3 pairs: the scores are equal in each")
    assert not equal.is_open
    assert outcome([0.0, 0.0]).is_open
    assert outcome([-5.0]).sentence() == "no evidence after 1 pair"
    assert outcome([-5.0]).as_json()["interval"] is None


def test_disagreement_of_scores_is_reported() -> None:
    better, worse, unclear = [-3.0, -3.1, -3.2], [3.0, 3.1, 3.2], [1.0, -9.0, 11.0]
    assert outcome(better, better).disagreements() == []
    assert outcome(better, worse).disagreements()[0].startswith("kd disagrees: worse by 3.10 ±")
    assert outcome(better, unclear).disagreements()[0].startswith("kd does not confirm it: worse by 1")
    assert outcome(unclear, worse).disagreements()[0].startswith("kd disagrees: worse")
    assert outcome(unclear, unclear).disagreements() == []


def test_rare_failures_are_warned_of() -> None:
    """A training in ten that is worse by 10 deviations is an outlier, or was not seen."""
    seen = outcome([-3.0, -2.0, -4.0, 40.0, -3.5])
    assert seen.warnings() == ["the pair of seed 3 is an outlier: +40, and the median of the others is -3.25"]
    unseen = outcome([-3.0, -3.1, -3.2])
    assert unseen.warnings() == ["3 pairs may miss a failure of up to 63% of trainings (95%)"]
    assert outcome([-12.0, 9.0, -3.0, 2.0]).warnings() == outcome([0.0] * 4).warnings() == []
    assert seen.as_json()["warnings"] == seen.warnings()


@pytest.mark.parametrize(
    ("noise", "deviation", "wanted"),
    [
        (1.0, math.sqrt(10.5), 100),  # seeds: a variance of 9.5, and 9 are enough
        (1.0, math.sqrt(9.5), 200),
        (1.0, math.sqrt(4.0), 400),
        (1.0, 0.5, 400),  # all of the spread may be noise: the largest number
        (0.0, 1.0, 100),
    ],
)
def test_images_are_doubled_until_noise_is_a_third_of_the_seeds(
    noise: float, deviation: float, wanted: int
) -> None:
    assert needed_images([noise, noise], deviation, 100, 400) == wanted


def test_samples_of_one_model_are_judged_by_pairs_of_images() -> None:
    cells = certain(document({(5, 0.0): 0.3, (5, 1.0): 0.5}), half=0.1).cells
    both = cells["steps5-eta0"], cells["steps5-eta1"]
    found = SamplingOutcome("eta=1", (), ("fd_effnet_lite0_64", "kd_effnet_lite0_64"), 0.05, scores=both)
    assert found.kind == "worse"
    assert found.main.mean == pytest.approx(200)
    strict = SamplingOutcome("eta=1", (), found.metrics, 0.01, scores=both)
    assert strict.main.half > found.main.half > 0


def test_page_has_each_sentence_and_one_picture() -> None:
    one, failed = outcome([-30.0, -31.0, -32.0]), replace(outcome([1.0]), name="<b>", failure="it is <NaN>")
    values = {"control": "params.yaml", "cell": "steps3-eta0", "images": 1000, "metric": FD, "seconds": 90.0}
    values |= {"pairs": [3, 12], "error": 0.05, "level": one.test.level, "over_budget": True}
    values |= {"equal": "time", "machine": "a CPU", "commit": None, "command": "diffctl verdict <b>"}
    page = render_verdict({**values, "subject": "training"}, [one, failed])
    assert one.sentence() in page
    assert one.warnings()[0] in page
    assert "not judged: it is &lt;NaN&gt;" in page
    assert "ended by the budget" in page
    assert page.count("<svg") == 1
    assert page.count('<tr><th scope="row">2</th>') == 1
    assert "<b>:" not in page
    assert "http" not in page
    assert "<svg" not in render_verdict({**values, "subject": "training"}, [failed])
