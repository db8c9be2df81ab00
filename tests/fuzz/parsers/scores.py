"""metrics/scores.json, with its ranking, gate, tables and comparison."""

import json
import math
import random
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from diffusion.choice.document_slices import all_spaces
from diffusion.choice.gate import decide
from diffusion.choice.ranking import best_cell
from diffusion.choice.selection import pareto_front, recommended
from diffusion.protocol.scores import pack
from diffusion.protocol.scores_document import document_values, read_scores
from diffusion.report import score_tables
from diffusion.report.headline import headline
from diffusion.system.errors import DiffctlError
from tests.helpers.scores_document import ERRORS, document, with_space
from tracking.comparison.compared_runs import ScoredRun
from tracking.comparison.score_comparison import compare

NAME = "scores.json"


@cache
def seeds() -> list[bytes]:
    """Return a minimal document, a complete one with one feature space, and one with two."""
    rich = document_values(document({(5, 0.0): 0.3, (10, 1.0): 0.4}))
    rich["intervals"] = {"confidence": 0.95}
    rich["best"]["optimism"] = 0.01
    rich["reference"] |= {"heldout_split": "test", "heldout_digest": "h" * 64, "heldout_count": 300}
    distances = {"fd_effnet_lite0_64": 20.0, "kd_effnet_lite0_64": 0.1}
    rich["reference"]["floor"] = {"num_images": 300, "extrapolated": True, **distances}
    for cell in rich["cells"].values():
        ends = {f"{name}_{end}": value for name, value in distances.items() for end in ("low", "high")}
        others = {"memorisation": 0.1, "memorisation_std": 0.2, "fd_effnet_lite0_64_inf": 3.0}
        cell["scores"] |= {**ends, **others, "precision_effnet_lite0_64": 0.5}
        cell["errors"] = {name: pack([0.1] * count) for name, count in ERRORS.items()}
        cell["classes"] = {"one": {"num_images": 5, "fd_effnet_lite0_64": 1.0, "floor": 0.5, "excess": 0.5}}
    several = document_values(with_space(document({(5, 0.0): 0.3, (10, 1.0): 0.4})))
    return [json.dumps(values).encode() for values in (document_values(document()), rich, several)]


def mutate_errors(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes | None:
    """Replace a cell's errors by valid ones with rare numbers and sizes."""
    numbers = (0.0, -0.1, 1e-45, 1e15, -1e15, 1e16, math.inf, math.nan)
    try:
        values = json.loads(data)
        cell = rng.choice(list(values["cells"].values()))
        cell["errors"] = {
            name: pack([rng.choice(numbers[:5])] * rng.choice((count, count, count, 1)))
            for name, count in ERRORS.items()
        }
        if rng.random() < 0.2:
            cell["errors"][rng.choice(list(cell["scores"]))] = pack([rng.choice(numbers)] * 100)
        cell["scores"] |= {f"{name}_{end}": 0.0 for name in ERRORS for end in ("low", "high")}
        return json.dumps(values).encode()
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError, IndexError):
        return None


MUTATORS = (mutate_errors,)


def parse(path: Path) -> None:
    """Read, rank and format it."""
    ours, theirs = read_scores(path), document()
    best_cell(ours.cells), pareto_front(ours.cells), recommended(ours.cells, 10)
    decide(theirs.cells, ours.cells, "version 1")
    spec = ours.spec
    score_tables.score_table(ours, spec), score_tables.front_table(ours, spec), headline(ours, spec)
    score_tables.spaces_table(all_spaces(ours))
    score_tables.protocol_table([cell.card for cell in ours.cells.values()])
    with suppress(DiffctlError):
        compare([ScoredRun("a", ours), ScoredRun("b", theirs)]).as_json()
