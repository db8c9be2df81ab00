"""The page of stored verdicts."""

from benchmarks.evidence import PAGE, read_verdicts
from diffusion.choice.paired_test import PairedTest
from diffusion.verdict.outcome import Pair, TrainingOutcome
from docs.site.evidence_page import missing_keys, with_evidence

MARKS = "a\n<!-- evidence -->\n<!-- /evidence -->\nb"


def test_page_shows_the_stored_verdicts() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_evidence(page, read_verdicts()) == page


def test_row_has_what_the_verdict_found() -> None:
    pairs = tuple(Pair(seed, {"fd": 100.0}, {"fd": 70.0 + seed}) for seed in range(3))
    found = TrainingOutcome("lr=1", ("train.lr 2 → 1",), ("fd",), 0.05, test=PairedTest(3, 12), pairs=pairs)
    failed = TrainingOutcome("a|b.yaml", ("x 1 → 2",), ("fd",), 0.05, failure="it is NaN")
    verdict = {"metric": "fd", "images": 1000, "changes": [found.as_json(), failed.as_json()]}
    assert missing_keys(verdict) == ["machine", "commit", "command"]
    verdict |= {"machine": "a CPU", "commit": "1234567", "command": "diffctl verdict lr=1 | cat"}
    *_, first, second = with_evidence(MARKS, [verdict]).partition("</div>")[0].strip().splitlines()
    assert found.sentence() == "better by 29.0 ± 5.5 (95%) after 3 pairs: keep it"
    ends = "−29.0 | −34.5 to −23.5 | 3 | **better** | a CPU | `1234567` | `diffctl verdict lr=1 | cat` |"
    assert first == f"| `lr=1` | fd, 1,000 images | {ends}"
    assert "| `a|b.yaml`: x 1 → 2 | fd, 1,000 images |  |  | 0 | **failed** |" in second


def test_equal_scores_are_no_difference() -> None:
    pairs = tuple(Pair(seed, {"fd": 100.0}, {"fd": 100.0}) for seed in range(3))
    found = TrainingOutcome("ema=1", ("x",), ("fd",), 0.05, test=PairedTest(3, 12), pairs=pairs)
    verdict = {"metric": "fd", "images": 500, "changes": [found.as_json()]}
    verdict |= {"machine": "a CPU", "commit": "1234567", "command": "diffctl verdict ema=1"}
    assert "| fd, 500 images | 0 | 0 to 0 | 3 | no difference |" in with_evidence(MARKS, [verdict])
