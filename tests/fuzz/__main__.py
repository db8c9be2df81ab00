"""`python -m tests.fuzz [PARSER...]`: try broken inputs and store findings in the corpus."""

import argparse
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a child is a fork

from tests.fuzz import PARSERS, load_parser
from tests.fuzz.harness import keep, run


def main() -> int:
    """Return the exit code: 1 if there are findings."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("parsers", nargs="*", metavar="PARSER", help=f"of {', '.join(PARSERS)}; all")
    options.add_argument("--inputs", type=int, default=100_000, help="for each parser (%(default)s)")
    options.add_argument("--seconds", type=float, default=600, help="at most, for each (%(default)s)")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    found = 0
    for name in given.parsers or PARSERS:
        parser = load_parser(name)
        made = run(parser, given.inputs, given.seconds, given.seed)
        print(made)
        for finding in made.findings.values():
            print(f"  kept as {keep(parser, finding) or 'nothing: it is too large'}")
        found += len(made.findings)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
