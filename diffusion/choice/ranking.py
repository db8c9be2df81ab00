"""Ranking of cells and models: the score that ranks, lower is better, and the gate.

The gate decides by scores of one protocol whether a model may replace the champion.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from diffusion.choice.confidence import card_diff, gap
from diffusion.protocol.card import (
    PLUGIN_FIELDS,
    REAL_IMAGE_FIELDS,
    REAL_ROLES,
    describe_difference,
    network_digests,
)
from diffusion.protocol.extractors import ExtractorSpec
from diffusion.protocol.scores_document import CellScores, ImageScores

FEW_IMAGES = 5000  # below, the Fréchet distance is biased by N and the unbiased kernel distance ranks

Cells = Mapping[str, CellScores]


def rank_metric(cell: ImageScores) -> str:
    """Return the name of the score that ranks a cell."""
    return ranking_score(cell.spec, cell.num_images, has_floor="excess" in cell.scores)


def ranking_score(spec: ExtractorSpec, num_images: int, *, has_floor: bool) -> str:
    """Return the ranking score: the kernel distance below 5,000 images, else the excess or the distance."""
    if num_images < FEW_IMAGES:
        return spec.kernel_distance
    return "excess" if has_floor else spec.distance


def front_metric(cell: ImageScores) -> str:
    """Return the score that orders cells as `rank_metric` does and is positive on real images."""
    metric = rank_metric(cell)
    return cell.spec.distance if metric == "excess" else metric


def best_cell(cells: Cells) -> tuple[str, str, float]:
    """Return the best cell's name, metric and value; among equal cells the one with the fewest steps."""
    value, _, name = min((cell.scores[rank_metric(cell)], cell.steps, name) for name, cell in cells.items())
    return name, rank_metric(cells[name]), value


def is_auxiliary(metric: str) -> bool:
    """Return whether a name is that of a score's spread or of an end of its interval."""
    return metric.endswith(("_std", "_low", "_high"))


def is_limit(metric: str) -> bool:
    """Return whether a name is that of a distance extrapolated to N → ∞."""
    return metric.endswith("_inf")


def is_published(metric: str) -> bool:
    """Return whether a name is that of a distance to published statistics."""
    return "_published" in metric


def leader(metric: str) -> Callable[..., Any] | None:
    """Return `min` or `max`, whichever finds the best value of a score; None for one that does not rank.

    With other networks than Inception, the Inception score ranks noise above images. Memorisation is best at
    0. Crowded samples have a higher density than real images.
    """
    if is_auxiliary(metric):
        return None
    if metric.startswith(("precision", "recall", "coverage")):
        return max
    return min if metric.startswith(("kd_", "kid", "fd_", "fid", "fld", "sfid", "cmmd", "excess")) else None


# The fields of a card with versions of the code. Weights can be scored again with the current ones.
CODE_VERSIONS = frozenset(
    {"sampling_version", "sampling_torch", "evaluation", "torch", "torch_fidelity", *PLUGIN_FIELDS}
)


class GateVerdict(NamedTuple):
    """Whether the candidate passes, why, and whether it is the champion's own weights `rescored`."""

    better: bool
    reason: str
    rescored: bool = False


def decide(candidate: Cells, champion: Cells, name: str) -> GateVerdict:
    """Compare a candidate's best score with the champion's best, over the cells of one protocol in both.

    The champion's best cell must be among these: against a lesser one a worse model could win. The candidate
    is better if the difference is significant. Without confidence intervals the smaller number decides, and
    the reason states that. `name` is the champion's name in the reason, such as `version 3`. The champion's
    own weights, scored again, pass: so the champion gets scores of a new protocol. Weights are those of all
    networks: the model, its guide, classifier and base.
    """
    bar, metric, theirs = best_cell(champion)
    no_match = f"not comparable with {name}"
    if bar not in candidate:
        return GateVerdict(False, f"{no_match}: its best cell {bar} was not scored, so put it into the sweep")
    if network_digests(candidate[bar].card) == network_digests(champion[bar].card):
        return GateVerdict(True, f"the weights of {name}, scored again", rescored=True)
    if fields := card_diff(champion[bar], candidate[bar]):
        return GateVerdict(False, f"{no_match}: the protocols differ in {describe_difference(fields)}")
    shared = {
        key: cell for key, cell in candidate.items() if key in champion and not card_diff(champion[key], cell)
    }
    cell, metric, value = best_cell(shared)
    found = gap(candidate[cell], champion[bar], metric)
    reason = f"{metric} {value:.5g} ({cell}) against {name}'s {theirs:.5g} ({bar})"
    if found is None:
        by = "by the smaller number alone, since these scores have no confidence intervals"
        return GateVerdict(value < theirs, f"{reason}, {by}")
    word = "more than" if found.is_significant else "within"
    chance = f"{word} what chance does (±{found.half:.2g}, {found.how})"
    return GateVerdict(found.is_significant and found.value < 0, f"{reason}, {chance}")


def outdated_best_cell(candidate: Cells, champion: Cells) -> str | None:
    """Return the champion's best cell if the cards differ only in code versions or in added real images.

    None if the two can be compared, if something else differs too, and if real images were removed or
    replaced: a data set that changed by mistake must not select the champion.
    """
    bar = best_cell(champion)[0]
    if bar not in candidate or network_digests(candidate[bar].card) == network_digests(champion[bar].card):
        return None
    fields = card_diff(champion[bar], candidate[bar])
    if any(_has_lost_images(fields, role) for role in REAL_ROLES):
        return None
    return bar if fields and fields.keys() <= CODE_VERSIONS.union(REAL_IMAGE_FIELDS) else None


def _has_lost_images(fields: Mapping[str, Sequence[Any]], role: str) -> bool:
    """Return whether there are fewer real images, or as many but others."""
    before, now = (count or 0 for count in fields.get(f"{role}_count", (0, 0)))
    return now < before or (now == before and f"{role}_digest" in fields)
