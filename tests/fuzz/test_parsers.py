"""Every parser of outside files: the corpus has no findings, nor have new inputs for some time."""

import os
import time

import pytest

from tests.fuzz import PARSERS, load_parser
from tests.fuzz.harness import corpus, replay_inputs, run

# New inputs each time, unless FUZZ_SEED is set.
SECONDS = float(os.environ.get("FUZZ_SECONDS", "120"))
SEED = int(os.environ.get("FUZZ_SEED", time.time()))


@pytest.mark.parametrize("name", PARSERS)
def test_seeds_and_corpus_have_no_findings(name: str) -> None:
    parser = load_parser(name)
    seeds = parser.seeds()
    assert sum(map(len, seeds)) < 1 << 20, "a large seed makes few inputs a second"
    assert replay_inputs(parser, [*seeds, *corpus(parser)]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_new_inputs_have_no_findings(name: str) -> None:
    made = run(load_parser(name), inputs=1_000_000, seconds=SECONDS, seed=SEED)
    assert not made.findings, f"{made}\n`python -m tests.fuzz {name}` keeps what it finds in the corpus"
