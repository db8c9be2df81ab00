"""Every parser of outside files: what was found once is found no more, and two minutes of new inputs."""

import os
import time

import pytest

from tests.fuzz import PARSERS, load_parser
from tests.fuzz.campaign import corpus, replayed, run

# Another seed and so other inputs every time, unless somebody asks for the same.
SECONDS = float(os.environ.get("FUZZ_SECONDS", "120"))
SEED = int(os.environ.get("FUZZ_SEED", time.time()))


@pytest.mark.parametrize("name", PARSERS)
def test_seeds_are_read_and_the_corpus_is_refused(name: str) -> None:
    parser = load_parser(name)
    seeds = parser.seeds()
    assert sum(map(len, seeds)) < 1 << 20, "a large seed makes few inputs a second"
    assert replayed(parser, [*seeds, *corpus(parser)]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_minutes_of_new_inputs_find_nothing(name: str) -> None:
    made = run(load_parser(name), inputs=1_000_000, seconds=SECONDS, seed=SEED)
    assert not made.findings, f"{made}\n`python -m tests.fuzz {name}` keeps what it finds in the corpus"
