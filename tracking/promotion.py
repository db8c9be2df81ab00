"""Who becomes champion: by the gate, by a person's hand, or by going back to the holder before."""

import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from diffusion.choice.gate import Verdict, decide, outdated_best_cell
from diffusion.protocol.scores import ScoresDocument
from diffusion.system.errors import DiffctlError, DiffctlWarning, UsageError, reason
from diffusion.system.section import brief
from tracking.families import seeds_aside
from tracking.history import MOST_NOTE, MOST_REASON, Event, History, Score, read_history, score_of
from tracking.moves import Contended, exists, mend, move, next_event
from tracking.names import DECISION, GIT_COMMIT
from tracking.reach import MlflowError
from tracking.versions import get_version, is_ours, scores_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient


@dataclass(frozen=True)
class Hand:
    """What a person asks of a promotion: `force` it past the gate, a `note` on why, or to see it only."""

    force: bool = False
    note: str = ""
    dry_run: bool = False


NOBODY = Hand()


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


def checked_note(text: str) -> str:
    """A person's reason in one printable line; UsageError where it is longer than the record has room for."""
    if len(text) > MOST_NOTE:
        raise UsageError(f"--reason has {len(text):,} characters: at most {MOST_NOTE} are kept")
    return brief(text, str, MOST_REASON)


def pass_gate(
    client: "MlflowClient", candidate: "ModelVersion", document: ScoresDocument, hand: Hand = NOBODY
) -> Decision:
    """Hold a version against the champion, and let it take the place if it is better or forced.

    Contended where another promotion came first.
    """
    name, number = candidate.name, int(candidate.version)
    if hand.dry_run:
        return foresee(client, name, number, document, hand)
    history = mend(client, name)
    if history.holder == number:
        return _already(history, number)
    verdict, against = _weigh(client, history, number, document, hand)
    said = f"{'promoted' if verdict.better else 'kept out'}: {verdict.reason}"
    if verdict.better:
        forced = hand.force and history.holder is not None
        event = next_event(
            history,
            how="force" if forced else "anew" if verdict.anew else "gate",
            after=number,
            reason=brief(verdict.reason, str, MOST_REASON - len("...")),
            note=hand.note,
            commit=candidate.tags.get(GIT_COMMIT),
            score=score_of(document.cells),
            against=against,
        )
        history = move(client, history, event)
    _note_decision(client, candidate, said)
    return Decision(name, number, history.holder, verdict.better, history.holder == number, said)


def foresee(
    client: "MlflowClient", name: str, number: int | None, document: ScoresDocument, hand: Hand = NOBODY
) -> Decision:
    """What the gate would decide of a version, or of a model that is not registered; nothing is changed."""
    history = read_history(client, name) if exists(client, name) else History(name, None, (), (), {})
    if number is not None and history.holder == number:
        return _already(history, number)
    verdict, _ = _weigh(client, history, number, document, hand)
    said = f"would be {'promoted' if verdict.better else 'kept out'}: {verdict.reason}"
    return Decision(name, number, history.holder, False, verdict.better, said)


def _already(history: History, number: int) -> Decision:
    return Decision(history.name, number, number, False, True, "it is champion already")


def _weigh(
    client: "MlflowClient", history: History, number: int | None, document: ScoresDocument, hand: Hand
) -> tuple[Verdict, Score | None]:
    """The verdict on a version, and the champion's score where it has one that can be read."""
    holder = history.holder
    if holder is None:
        return Verdict(True, "the first one"), None
    champion = get_version(client, history.name, holder)
    if champion is None:
        return Verdict(True, f"version {holder}, which was champion, was deleted in MLflow"), None
    scores = _readable_scores(client, champion) if is_ours(champion) else None
    against = score_of(scores.cells) if scores else None
    if hand.force:
        return Verdict(True, f"put in version {holder}'s place by hand"), against
    if number in history.pinned:
        return Verdict(False, pin_told(history.pinned[number], number)), against
    if scores is None:
        return Verdict(False, f"the scores of version {holder} cannot be read: promote by --force"), None
    verdict = decide(document.cells, scores.cells, f"version {holder}")
    stale = hand.dry_run and outdated_best_cell(document.cells, scores.cells)
    later = "; without --dry-run it is scored anew first" if stale else ""
    aside = seeds_aside(client, history.name, document, scores)
    return verdict._replace(reason=f"{verdict.reason}{later}{aside}"), against


def _readable_scores(client: "MlflowClient", champion: "ModelVersion") -> ScoresDocument | None:
    """The champion's scores; None, told as a warning, where they are damaged or of another format."""
    try:
        return scores_of(client, champion)
    except MlflowError:
        raise
    except DiffctlError as error:
        warnings.warn(reason(error), DiffctlWarning, stacklevel=2)
        return None


def pin_told(pin: Event, version: int) -> str:
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


def existing_version(client: "MlflowClient", name: str, number: int) -> "ModelVersion":
    """The version of that number; UsageError when there is none."""
    found = get_version(client, name, number)
    if found is None:
        raise UsageError(f"{name} has no version {number}: `diffctl history` says which were champion")
    return found


def promote_version(client: "MlflowClient", name: str, number: int, hand: Hand = NOBODY) -> Decision:
    """Hold a registered version against the champion by its own scores, as `pass_gate`.

    UsageError when there is no such version.
    """
    candidate = existing_version(client, name, number)
    return pass_gate(client, candidate, scores_of(client, candidate), hand)


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
    history = mend(client, name) if exists(client, name) else History(name, None, (), (), {})
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
        raise Contended(
            f"nothing was rolled back: version {now.holder} became champion meanwhile; see `diffctl history`"
        )
    left = get_version(client, now.name, now.holder or 0)
    event = next_event(
        now,
        how="rollback",
        after=plan.number,
        reason=f"back from version {now.holder}",
        note=note,
        commit=plan.target.tags.get(GIT_COMMIT),
        score=_score(client, plan.target),
        against=None if left is None else _score(client, left),
    )
    return move(client, now, event)


def _score(client: "MlflowClient", registered: "ModelVersion") -> Score | None:
    scores = _readable_scores(client, registered) if is_ours(registered) else None
    return score_of(scores.cells) if scores else None
