"""Who becomes champion: by the gate, by a person's hand, or by going back to the holder before."""

import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from diffusion.choice.gate import Verdict, decide, outdated_best_cell
from diffusion.protocol.scores import ScoresDocument
from diffusion.system.errors import DiffctlError, DiffctlWarning, UsageError, reason
from diffusion.system.section import brief
from tracking.comparison.families import describe_seeds
from tracking.connectivity import MlflowError
from tracking.keys import DECISION, GIT_COMMIT
from tracking.registry.champion_log import (
    MAX_NOTE,
    MAX_REASON,
    History,
    Move,
    Score,
    judged_score,
    read_history,
)
from tracking.registry.model_versions import fetch_version_scores, get_version, is_diffctl_version
from tracking.registry.moves import ConcurrentMove, apply_move, model_exists, next_move, repair

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient


@dataclass(frozen=True)
class Override:
    """What a person asks of a promotion: `force` it past the gate, a `note` on why, or to see it only."""

    force: bool = False
    note: str = ""
    dry_run: bool = False


NO_OVERRIDE = Override()


@dataclass(frozen=True)
class Decision:
    """What became of a model: its version, who is champion now, whether it moved, and why.

    `version` is None of a model that is not registered yet, `champion` where there is none: both in a dry run
    alone. `passed` says whether it is champion, in a dry run whether it would be.
    """

    name: str
    version: int | None
    champion: int | None
    promoted: bool
    passed: bool
    reason: str

    def __str__(self) -> str:
        what = f"version {self.version}" if self.version else "models/ as it lies here"
        holder = f"champion is version {self.champion}" if self.champion else "there is no champion"
        return f"{self.name} {what}: {self.reason}; {holder}"


def check_note(text: str) -> str:
    """A person's reason in one printable line; UsageError where it is longer than the record has room for."""
    if len(text) > MAX_NOTE:
        raise UsageError(f"--reason has {len(text):,} characters: at most {MAX_NOTE} are kept")
    return brief(text, str, MAX_REASON)


def apply_gate(
    client: "MlflowClient",
    candidate: "ModelVersion",
    document: ScoresDocument,
    override: Override = NO_OVERRIDE,
) -> Decision:
    """Hold a version against the champion, and let it take the place if it is better or forced.

    Contended where another promotion came first.
    """
    name, number = candidate.name, int(candidate.version)
    if override.dry_run:
        return preview_gate(client, name, number, document, override)
    history = repair(client, name)
    if history.holder == number:
        return _already(history, number)
    verdict, against = _weigh(client, history, number, document, override)
    said = f"{'promoted' if verdict.better else 'kept out'}: {verdict.reason}"
    if verdict.better:
        forced = override.force and history.holder is not None
        event = next_move(
            history,
            how="force" if forced else "anew" if verdict.anew else "gate",
            after=number,
            reason=brief(verdict.reason, str, MAX_REASON - len("...")),
            note=override.note,
            commit=candidate.tags.get(GIT_COMMIT),
            score=judged_score(document.cells),
            against=against,
        )
        history = apply_move(client, history, event)
    _note_decision(client, candidate, said)
    return Decision(name, number, history.holder, verdict.better, history.holder == number, said)


def preview_gate(
    client: "MlflowClient",
    name: str,
    number: int | None,
    document: ScoresDocument,
    override: Override = NO_OVERRIDE,
) -> Decision:
    """What the gate would decide of a version, or of a model that is not registered; nothing is changed."""
    history = read_history(client, name) if model_exists(client, name) else History(name, None, (), (), {})
    if number is not None and history.holder == number:
        return _already(history, number)
    verdict, _ = _weigh(client, history, number, document, override)
    said = f"would be {'promoted' if verdict.better else 'kept out'}: {verdict.reason}"
    return Decision(name, number, history.holder, False, verdict.better, said)


def _already(history: History, number: int) -> Decision:
    return Decision(history.name, number, number, False, True, "it is champion already")


def _weigh(
    client: "MlflowClient", history: History, number: int | None, document: ScoresDocument, override: Override
) -> tuple[Verdict, Score | None]:
    """The verdict on a version, and the champion's score where it has one that can be read."""
    holder = history.holder
    if holder is None:
        return Verdict(True, "the first one"), None
    champion = get_version(client, history.name, holder)
    if champion is None:
        return Verdict(True, f"version {holder}, which was champion, was deleted in MLflow"), None
    scores = _readable_scores(client, champion) if is_diffctl_version(champion) else None
    against = judged_score(scores.cells) if scores else None
    if override.force:
        return Verdict(True, f"put in version {holder}'s place by hand"), against
    if number in history.pinned:
        return Verdict(False, pin_reason(history.pinned[number], number)), against
    if scores is None:
        return Verdict(False, f"the scores of version {holder} cannot be read: promote by --force"), None
    verdict = decide(document.cells, scores.cells, f"version {holder}")
    stale = override.dry_run and outdated_best_cell(document.cells, scores.cells)
    later = "; without --dry-run it is scored anew first" if stale else ""
    aside = describe_seeds(client, history.name, document, scores)
    return verdict._replace(reason=f"{verdict.reason}{later}{aside}"), against


def _readable_scores(client: "MlflowClient", champion: "ModelVersion") -> ScoresDocument | None:
    """The champion's scores; None, told as a warning, where they are damaged or of another format."""
    try:
        return fetch_version_scores(client, champion)
    except MlflowError:
        raise
    except DiffctlError as error:
        warnings.warn(reason(error), DiffctlWarning, stacklevel=2)
        return None


def pin_reason(pin: Move, version: int) -> str:
    """Why the gate lets a version not pass that a rollback took the place from."""
    day = datetime.fromtimestamp(pin.at / 1000, UTC).date()
    note = f" ({pin.note})" if pin.note else ""
    return (
        f"{pin.who} rolled it back to version {pin.after} on {day}{note}: "
        f"`diffctl promote {version} --force --reason TEXT` ends that"
    )


def _note_decision(client: "MlflowClient", candidate: "ModelVersion", said: str) -> None:
    """Keep what was decided on the version's page, each decision once and none written over."""
    name, number = candidate.name, str(candidate.version)
    tags = client.get_model_version(name, number).tags
    decided = {key: text for key, text in tags.items() if key.partition(DECISION)[0] == ""}
    if said not in decided.values():
        key = f"{DECISION}.{len(decided) + 1}" if decided else DECISION
        client.set_model_version_tag(name, number, key, said)


def require_version(client: "MlflowClient", name: str, number: int) -> "ModelVersion":
    """The version of that number; UsageError when there is none."""
    found = get_version(client, name, number)
    if found is None:
        raise UsageError(f"{name} has no version {number}: `diffctl history` says which were champion")
    return found


def promote_version(
    client: "MlflowClient", name: str, number: int, override: Override = NO_OVERRIDE
) -> Decision:
    """Hold a registered version against the champion by its own scores, as `apply_gate`.

    UsageError when there is no such version.
    """
    candidate = require_version(client, name, number)
    return apply_gate(client, candidate, fetch_version_scores(client, candidate), override)


@dataclass(frozen=True)
class Rollback:
    """Where a rollback goes to: the version, with the history that it was planned by."""

    history: History
    target: "ModelVersion"

    @property
    def number(self) -> int:
        """The version's number."""
        return int(self.target.version)


def plan_rollback(client: "MlflowClient", name: str, to: int | None = None) -> Rollback:
    """The holder before the present one, or the earlier holder `to`.

    UsageError where there is none, and where `to` never was champion.
    """
    history = repair(client, name) if model_exists(client, name) else History(name, None, (), (), {})
    if history.holder is None:
        raise UsageError(f"{name} has no champion: `diffctl run` registers a model")
    number = history.previous if to is None else to
    if number is None:
        raise UsageError(
            f"before version {history.holder} no version of {name} was champion: give one by --to"
        )
    if number == history.holder:
        raise UsageError(f"version {number} of {name} is champion already")
    held = {event.after for event in history.events} | {event.before for event in history.events}
    if number not in held:
        raise UsageError(
            f"version {number} of {name} never was champion: `diffctl promote {number}` holds it against "
            f"version {history.holder}"
        )
    target = get_version(client, name, number)
    if target is None:
        raise UsageError(f"version {number} of {name} was deleted in MLflow: give another one by --to")
    return Rollback(history, target)


def roll_back(client: "MlflowClient", plan: Rollback, note: str = "") -> History:
    """Make the planned version champion again, and pin it; Contended where the champion moved meanwhile."""
    now = read_history(client, plan.history.name)
    if now.holder != plan.history.holder:
        raise ConcurrentMove(
            f"nothing was rolled back: version {now.holder} became champion meanwhile; see `diffctl history`"
        )
    left = get_version(client, now.name, now.holder or 0)
    event = next_move(
        now,
        how="rollback",
        after=plan.number,
        reason=f"back from version {now.holder}",
        note=note,
        commit=plan.target.tags.get(GIT_COMMIT),
        score=_score(client, plan.target),
        against=None if left is None else _score(client, left),
    )
    return apply_move(client, now, event)


def _score(client: "MlflowClient", registered: "ModelVersion") -> Score | None:
    scores = _readable_scores(client, registered) if is_diffctl_version(registered) else None
    return judged_score(scores.cells) if scores else None
