"""Decisions about the champion: by the gate, by a user's override, or by a rollback, which pins a version."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from diffusion.choice.confidence import cells_by_seed, deviation_of, group_gap, mean_of
from diffusion.choice.ranking import GateVerdict, best_cell, decide, outdated_best_cell
from diffusion.protocol.scores_document import CellScores, ScoresDocument
from diffusion.system.errors import UsageError
from diffusion.system.section import brief
from tracking.comparison.score_comparison import format_spread
from tracking.keys import DECISION, GIT_COMMIT, SETTING
from tracking.registry.champion_log import (
    MAX_NOTE,
    MAX_REASON,
    RESCORED,
    ChampionHistory,
    ConcurrentMove,
    Score,
    judged_score,
    make_move,
    read_history,
    repair,
)
from tracking.registry.model_versions import (
    fetch_version_networks,
    fetch_version_scores,
    get_version,
    other_images,
)
from tracking.store import mlflow_client, readable

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from diffusion.sample.network_files import NetworkFiles

MAX_SEEDS = 10  # versions of a setting that the gate reads, the newest


@dataclass(frozen=True)
class Override:
    """A user's options for a promotion: `force` it past the gate, a `note` as the reason, or a `dry_run`."""

    force: bool = False
    note: str = ""
    dry_run: bool = False


NO_OVERRIDE = Override()


@dataclass(frozen=True)
class GateDecision:
    """The result for a model: its version, the champion, whether the champion changed, and why.

    `version` is None for a model that is not registered, in a dry run; `champion` is None without a champion.
    `passed` is whether the model is champion, in a dry run whether it would be.
    """

    name: str
    version: int | None
    champion: int | None
    promoted: bool
    passed: bool
    reason: str

    def __str__(self) -> str:
        what = f"version {self.version}" if self.version else "the model in models/"
        holder = f"champion is version {self.champion}" if self.champion else "there is no champion"
        return f"{self.name} {what}: {self.reason}; {holder}"


def check_note(text: str) -> str:
    """Return a user's reason as one printable line; UsageError if it is too long."""
    if len(text) > MAX_NOTE:
        raise UsageError(f"--reason has {len(text):,} characters: give at most {MAX_NOTE}")
    return brief(text, str, MAX_NOTE)[:MAX_NOTE]


def apply_gate(
    client: "MlflowClient",
    name: str,
    candidate: "ModelVersion | None",
    document: ScoresDocument,
    override: Override = NO_OVERRIDE,
) -> GateDecision:
    """Compare a version with the champion, and make it champion if it is better or forced.

    A dry run changes nothing; its candidate may be unregistered (None). ConcurrentMove if another was first.
    """
    number = int(candidate.version) if candidate else None
    history = read_history(client, name) if override.dry_run else repair(client, name)
    if number is not None and history.holder == number:
        return GateDecision(name, number, number, False, True, "it is champion already")
    verdict, against = _judge(client, history, number, document, override)
    what = "promoted" if verdict.better else "kept out"
    if override.dry_run or candidate is None or number is None:
        text = f"would be {what}: {verdict.reason}"
        return GateDecision(name, number, history.holder, False, verdict.better, text)
    if verdict.better:
        forced = override.force and history.holder is not None
        history = make_move(
            client,
            history,
            how="force" if forced else RESCORED if verdict.rescored else "gate",
            after=number,
            reason=brief(verdict.reason, str, MAX_REASON - len("...")),
            note=override.note,
            commit=candidate.tags.get(GIT_COMMIT),
            score=judged_score(document.cells),
            against=against,
        )
    text = f"{what}: {verdict.reason}"
    _log_decision(client, candidate, text)
    return GateDecision(name, number, history.holder, verdict.better, history.holder == number, text)


def _judge(
    client: "MlflowClient",
    history: ChampionHistory,
    number: int | None,
    document: ScoresDocument,
    override: Override,
) -> tuple[GateVerdict, Score | None]:
    """Return the verdict on a version, and the champion's score if it can be read."""
    holder = history.holder
    if holder is None:
        return GateVerdict(True, "the first one"), None
    champion = get_version(client, history.name, holder)
    if champion is None:
        return GateVerdict(True, f"version {holder}, which was champion, was deleted in MLflow"), None
    scores, why = readable(fetch_version_scores, client, champion)
    against = judged_score(scores.cells) if scores else None
    if override.force:
        return GateVerdict(True, f"forced to replace version {holder}"), against
    if number in history.pinned:
        pin = history.pinned[number]
        day = datetime.fromtimestamp(pin.at / 1000, UTC).date()
        note = f" ({pin.note})" if pin.note else ""
        back = f"{pin.who} rolled it back to version {pin.after} on {day}{note}"
        text = f"{back}: `diffctl promote {number} --force --reason TEXT` promotes it"
        return GateVerdict(False, text), against
    if others := other_images(champion):
        text = f"{others}: set tracking.title to name this project's models, or --force replaces the champion"
        return GateVerdict(False, text), against
    if scores is None:
        return GateVerdict(False, f"the champion cannot be compared ({why}): --force replaces it"), None
    verdict = decide(document.cells, scores.cells, f"version {holder}")
    is_outdated = override.dry_run and outdated_best_cell(document.cells, scores.cells)
    rescoring = f"; without --dry-run version {holder} is scored again first" if is_outdated else ""
    seeds = _describe_seeds(client, history.name, document, scores)
    return verdict._replace(reason=f"{verdict.reason}{rescoring}{seeds}"), against


def _describe_seeds(
    client: "MlflowClient", name: str, candidate: ScoresDocument, champion: ScoresDocument
) -> str:
    """Return the spread over seeds with readable scores on the champion's best cell; empty without several.

    The gate chooses between two models. Another seed of the same setting gives another model, so the better
    model does not need to have the better setting.
    """
    ours, theirs = candidate.training, champion.training
    cell, metric, _ = best_cell(champion.cells)
    if ours is None or theirs is None or cell not in candidate.cells:
        return ""

    def by_seed(setting: str, own: ScoresDocument) -> list[CellScores]:
        query, order = f"name = '{name}' AND tags.`{SETTING}` = '{setting}'", ["version_number DESC"]
        versions = client.search_model_versions(query, max_results=MAX_SEEDS, order_by=order)
        found = (readable(fetch_version_scores, client, version)[0] for version in versions)
        documents = [own, *filter(None, found)]
        return list(cells_by_seed(documents, cell, champion.cells[cell]).values())

    def spread(cells: Sequence[CellScores]) -> str:
        return f"{metric} {mean_of(cells, metric):.4g} ± {format_spread(deviation_of(cells, metric) or 0.0)}"

    mine = by_seed(ours.setting, candidate)
    if len(mine) > 1 and ours.setting == theirs.setting:
        return f"; {len(mine)} seeds of their common setting have {spread(mine)}"
    held = by_seed(theirs.setting, champion) if len(mine) > 1 else []
    if len(held) < 2:
        return ""
    gap = group_gap(mine, held, metric)
    significant = "a significant gap" if gap is not None and gap.is_significant else "no significant gap"
    return (
        f"; its setting has {spread(mine)} over {len(mine)} seeds and the champion's "
        f"{spread(held)} over {len(held)}, {significant}"
    )


def _log_decision(client: "MlflowClient", candidate: "ModelVersion", text: str) -> None:
    """Log the decision as a tag of the version: each text once, none overwritten."""
    name, number = candidate.name, str(candidate.version)
    tags = client.get_model_version(name, number).tags
    decided = {key: value for key, value in tags.items() if key.startswith(DECISION)}
    if text not in decided.values():
        key = f"{DECISION}.{len(decided) + 1}" if decided else DECISION
        client.set_model_version_tag(name, number, key, text)


def roll_back(
    name: str, to: int | None, note: str, check: "Callable[[NetworkFiles, ScoresDocument], object]"
) -> ChampionHistory:
    """Return to the previous champion, or to the earlier champion `to`, and pin the present one.

    `check` tries the files first. UsageError without such a champion, ConcurrentMove if it changed meanwhile.
    """
    with mlflow_client() as client:
        before = repair(client, name)
        target = get_version(client, name, number := _target(before, to))
        if target is None:
            raise UsageError(f"version {number} of {name} was deleted in MLflow: give another one by --to")
        files, scores = fetch_version_networks(client, target), fetch_version_scores(client, target)
    check(files, scores)
    with mlflow_client() as client:
        now = read_history(client, name)
        if now.holder != before.holder:
            raise ConcurrentMove(f"nothing was rolled back: version {now.holder} became champion meanwhile")
        champion = get_version(client, name, now.holder or 0)
        held = readable(fetch_version_scores, client, champion)[0] if champion else None
        return make_move(
            client,
            now,
            how="rollback",
            after=number,
            reason=f"back from version {now.holder}",
            note=note,
            commit=target.tags.get(GIT_COMMIT),
            score=judged_score(scores.cells),
            against=judged_score(held.cells) if held else None,
        )


def _target(history: ChampionHistory, to: int | None) -> int:
    """Return the number of the version to return to, an earlier champion."""
    name, holder = history.name, history.holder
    if holder is None:
        raise UsageError(f"{name} has no champion: `diffctl run` registers a model")
    moved = [version for move in history.events for version in (move.before, move.after)]
    earlier = sorted({version for version in moved if version is not None} - {holder})
    number = history.previous if to is None else to
    if number not in earlier:
        why = f"version {number} is no earlier" if number else f"version {holder} is its first"
        choices = f": give one of {', '.join(map(str, earlier))} by --to" if earlier else ""
        raise UsageError(f"{name} cannot be rolled back: {why} champion{choices}")
    return number
