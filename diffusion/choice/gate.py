"""The gate: decide by scores of one protocol whether a model may replace the champion."""

from typing import NamedTuple

from diffusion.choice.confidence import card_diff, gap
from diffusion.choice.ranking import Cells, best_cell
from diffusion.protocol.card import (
    PLUGIN_FIELDS,
    REAL_COUNTS,
    REAL_IMAGE_FIELDS,
    describe_difference,
)

# The fields of a card with versions of the code. Weights can be scored again with the current ones.
CODE_VERSIONS = frozenset(
    {"sampling_version", "sampling_torch", "evaluation", "torch", "torch_fidelity", *PLUGIN_FIELDS}
)


class Verdict(NamedTuple):
    """Whether the candidate passes, why, and whether it is the champion's own weights `rescored`."""

    better: bool
    reason: str
    rescored: bool = False


def decide(candidate: Cells, champion: Cells, name: str) -> Verdict:
    """Compare a candidate's best score with the champion's best, over the cells of one protocol in both.

    The champion's best cell must be among these: against a lesser one a worse model could win. The candidate
    is better if the difference is significant. Without confidence intervals the smaller number decides, and
    the reason states that. `name` is the champion's name in the reason, such as `version 3`. The champion's
    own weights, scored again, pass: so the champion gets scores of a new protocol.
    """
    bar, metric, theirs = best_cell(champion)
    if bar not in candidate:
        return Verdict(
            False,
            f"not comparable with {name}: its best cell {bar} was not scored, so put it into the sweep",
        )
    if _weights(candidate) == _weights(champion):
        return Verdict(True, f"the weights of {name}, scored again", rescored=True)
    if fields := card_diff(champion[bar], candidate[bar]):
        return Verdict(
            False, f"not comparable with {name}: the protocols differ in {describe_difference(fields)}"
        )
    shared = {
        key: cell for key, cell in candidate.items() if key in champion and not card_diff(champion[key], cell)
    }
    cell, metric, value = best_cell(shared)
    found = gap(candidate[cell], champion[bar], metric)
    reason = f"{metric} {value:.5g} ({cell}) against {name}'s {theirs:.5g} ({bar})"
    if found is None:
        by = "by the smaller number alone, since these scores have no confidence intervals"
        return Verdict(value < theirs, f"{reason}, {by}")
    word = "more than" if found.is_significant else "within"
    chance = f"{word} what chance does (±{found.half:.2g}, {found.how})"
    return Verdict(found.is_significant and found.value < 0, f"{reason}, {chance}")


def outdated_best_cell(candidate: Cells, champion: Cells) -> str | None:
    """Return the champion's best cell if the cards differ only in code versions or in more real images.

    None if the two can be compared, if something else differs too, and if there are fewer real images: a data
    set that lost images by mistake must not select the champion.
    """
    bar = best_cell(champion)[0]
    if bar not in candidate or _weights(candidate) == _weights(champion):
        return None
    fields = card_diff(champion[bar], candidate[bar])
    fewer = any((fields[name][1] or 0) < (fields[name][0] or 0) for name in fields.keys() & REAL_COUNTS)
    return bar if fields and not fewer and fields.keys() <= CODE_VERSIONS.union(REAL_IMAGE_FIELDS) else None


def _weights(cells: Cells) -> str:
    return str(next(iter(cells.values())).card.get("model_sha256"))
