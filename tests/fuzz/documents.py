"""Documents: params.yaml, papers, scores."""

from contextlib import suppress
from functools import cache
from pathlib import Path

import yaml

from diffusion.choice.ranking import best_cell, decide
from diffusion.choice.selection import all_spaces
from diffusion.config import load
from diffusion.papers.paper import compare_cells, open_paper, shared_differences
from diffusion.protocol.grid import cell_settings, grid, settings_card
from diffusion.protocol.resolution import recommended
from diffusion.protocol.scores_document import document_values, pack, read_scores
from diffusion.report import score_tables
from diffusion.report.score_tables import headline
from diffusion.system.errors import DiffctlError
from diffusion.system.section import fingerprint
from tests.conftest import ROOT, params
from tests.fuzz.mutators import Parser, as_json
from tests.helpers.broken_params import CLASSIFIER, broken_profile
from tests.helpers.scores_document import ERRORS, document, with_space
from tracking.comparison.score_comparison import ScoredRun, compare


@cache
def params_seeds() -> list[bytes]:
    """Return a profile without comments, and a complete document as JSON."""
    profile = (ROOT / "profiles/digits.yaml").read_text(encoding="utf-8")
    lines = [line.partition("#")[0].rstrip() for line in profile.splitlines()]
    axes = {"noise": ["small", "large"], "spacing": ["uniform", "trailing"], "guidance": [0, 1.5]}
    axes["guidance_interval"] = [None, [0.2, 5]]
    also = ["effnet-lite0-96", {"extractor": "inception-v3-compat", "weights": "x.pth"}]
    whole = {**params(sweep=axes, evaluate={"extra_extractors": also}), "classifier": CLASSIFIER}
    return ["\n".join(filter(None, lines)).encode(), *as_json(whole)]


def read_params_file(path: Path) -> None:
    """Load it, and make its cells' cards."""
    config = load(path)
    fingerprint(config)
    for cell in grid(config.sample, config.sweep):
        settings_card(cell_settings(config.sample, cell))


@cache
def paper_seeds() -> list[bytes]:
    """Return a minimal and a complete YAML file of published figures."""
    figure = {"name": "a", "where": "table 1", "metric": "fid", "value": 2.5}
    plain = {"title": "A", "source": "B", "figures": [figure]}
    protocol = {"data": "cifar10", "num_images": 50_000, "clip": True, "noise": None}
    figures = [{**figure, "datasets": ["digits"], "protocol": {"steps": 10, "eta": 0.5}}, figure]
    rich = {**plain, "note": "n", "least_of": 3, "protocol": protocol, "figures": figures}
    return [yaml.safe_dump(values).encode() for values in (plain, rich)]


def read_paper(path: Path) -> None:
    """Read it and compare it with a sweep."""
    found = compare_cells(open_paper(str(path)), document().cells)
    shared_differences([one.differences for one in found])
    for one in found:
        one.as_json(), [str(departure) for departure in one.differences]


@cache
def scores_seeds() -> list[bytes]:
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
    return as_json(document_values(document()), rich, several)


def read_scores_file(path: Path) -> None:
    """Read, rank and format it."""
    ours, theirs = read_scores(path), document()
    best_cell(ours.cells), recommended(ours, 10)
    decide(theirs.cells, ours.cells, "version 1")
    score_tables.score_table(ours), score_tables.front_table(ours), headline(ours)
    score_tables.spaces_table(all_spaces(ours))
    score_tables.protocol_table([cell.card for cell in ours.cells.values()])
    with suppress(DiffctlError):
        compare([ScoredRun("a", ours), ScoredRun("b", theirs)]).as_json()


PARSERS = {
    "params": Parser(
        params_seeds, read_params_file, "params.yaml", [lambda rng, data, pool: broken_profile(rng)]
    ),
    "paper": Parser(paper_seeds, read_paper, "paper.yaml"),
    "scores": Parser(scores_seeds, read_scores_file, "scores.json"),
}
