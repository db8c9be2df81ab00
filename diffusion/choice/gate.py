"""The gate: whether a model may take the champion's place, decided by scores of one protocol only."""

from typing import Any, NamedTuple

from diffusion.choice.certainty import gap
from diffusion.choice.ranking import Cells, best
from diffusion.protocol.scores import Scored

SUBJECT = ("model_sha256",)  # what is compared: the only field of a card that may differ


class Verdict(NamedTuple):
    """Whether the candidate is better, and why, as part of a sentence."""

    better: bool
    reason: str


def clash(cell: Scored, other: Scored) -> dict[str, list[Any]]:
    """The fields on which the protocol cards of two cells differ, each with both values."""
    from diffusion.protocol.card import differing

    return differing([cell.card, other.card], SUBJECT)


def judge(candidate: Cells, champion: Cells, version: int) -> Verdict:
    """Hold a candidate's best score against the champion's, over the cells that both have under one protocol.

    `version` is the champion's, for the reason's text. The champion's own weights, scored anew, pass: that
    is how it comes under a new protocol.
    """
    if _weights(candidate) == _weights(champion):
        return Verdict(True, f"the weights of version {version}, scored anew")
    common = [name for name in candidate if name in champion]
    clashes = {name: clash(champion[name], candidate[name]) for name in common}
    shared = [name for name in common if not clashes[name]]
    if not shared:
        fields = next(iter(clashes.values()), {"cells": [len(champion), len(candidate)]})
        differ = ", ".join(f"{field} ({a} against {b})" for field, (a, b) in fields.items())
        return Verdict(False, f"not comparable with version {version}, whose protocol differs in {differ}")
    cell, metric, value = best({name: candidate[name] for name in shared})
    their_cell, _, theirs = best({name: champion[name] for name in shared})
    reason = f"{metric} {value:.5g} ({cell}) against version {version}'s {theirs:.5g} ({their_cell})"
    return Verdict(value < theirs, reason + _chance(candidate[cell], champion[their_cell], metric))


def _chance(cell: Scored, other: Scored, metric: str) -> str:
    """What the gap's confidence interval says of it, as the end of a sentence; empty where there is none."""
    found = gap(cell, other, metric)
    if found is None:
        return ""
    word = "more than" if found.is_told else "within"
    return f", {word} what chance does (±{found.half:.2g}, {found.how})"


def _weights(cells: Cells) -> str:
    return str(next(iter(cells.values())).card.get("model_sha256"))
