"""Commands over the registry: which model is champion, who decided it, and back to the one before."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.shared.first_word import begin
from cli.shared.progress import progress
from cli.shared.tables import show, table
from diffusion.system.limits import MAX_COUNT

if TYPE_CHECKING:
    from diffusion.protocol.scores import ScoresDocument
    from tracking.registry.champion_log import History, Move, Score

SHORT = 9  # digits of a commit

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the history.")]


def promote(
    version: Annotated[
        int | None,
        typer.Argument(
            metavar="[VERSION]", min=1, max=MAX_COUNT, help="A registered version. [default: models/]"
        ),
    ] = None,
    reason: Reason = "",
    force: Annotated[
        bool, typer.Option("--force", help="Promote it whatever the gate says; needs --reason.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the gate would decide, and change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion if it is better; by default models/, registered with its scores first.

    Exit code 3 when the gate keeps it out.
    """
    from diffusion.system.errors import KEPT_OUT, UsageError

    if force and not reason.strip():
        raise UsageError("--force needs --reason TEXT: the history says why the gate was overruled")
    begin("reading the registry", as_json)
    from flows.registration import promote_version, register_model
    from tracking.registry.promotion import Override, check_note

    override = Override(force, check_note(reason), dry_run)
    if version:
        decision = promote_version(_name(), version, override, progress)
    else:
        decision = register_model(override, progress)
    typer.echo(json.dumps(vars(decision)) if as_json else decision)
    if not decision.passed:
        raise typer.Exit(KEPT_OUT)


def rollback(
    to: Annotated[
        int | None,
        typer.Option(
            "--to", metavar="N", min=1, max=MAX_COUNT, help="An earlier version. [default: the one before]"
        ),
    ] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Make the previous champion the champion again, after checking its file and sampling one image.

    The version that it replaces is pinned: no `diffctl run` promotes it again.
    """
    begin("reading the registry", as_json)
    from tracking.registry import model_registry
    from tracking.registry.promotion import check_note

    note = check_note(reason)
    plan, weights, scores = model_registry.plan_rollback(_name(), to)
    _sample_one(weights, scores)
    history = model_registry.roll_back(plan, note)
    event = history.events[-1]
    if as_json:
        typer.echo(json.dumps(event.model_dump(mode="json")))
    else:
        typer.echo(
            f"{history.name}: champion is version {event.after} again, after version {event.before}, which "
            "stays out until `diffctl promote` forces it in; its file was checked and an image of it sampled"
        )


def history(as_json: AsJson = False) -> None:
    """List the champions, the newest last: when, by whom, from which version to which, and why."""
    begin("reading the registry", as_json)
    from tracking.registry.model_registry import read_champion_history

    found = read_champion_history(_name())
    typer.echo(json.dumps(found.as_json(), indent=2)) if as_json else _show_history(found)


def _name() -> str:
    """The registered model of this params.yaml's data."""
    from diffusion.config import load
    from tracking.keys import model_name

    return model_name(load().data.name)


def _sample_one(weights: Path, scores: "ScoresDocument") -> None:
    """Make image 0 as in the best cell; raises what keeps the model from being sampled."""
    from diffusion.model.model_file import load_model
    from diffusion.protocol.settings import SampleSettings
    from diffusion.sample.class_labels import mixed_condition
    from diffusion.sample.generate import generate
    from diffusion.system.devices import default_device
    from diffusion.system.section import validate

    device = default_device()
    loaded, card = load_model(weights, device), scores.cells[scores.best.cell].card
    known = {field: card[field] for field in SampleSettings.model_fields if field in card}
    settings = validate(SampleSettings, known, f"the card of {scores.best.cell} does not fit")
    generate(loaded, settings, [0], mixed_condition(loaded.artefact, settings, [0]), device)


def _show_history(found: "History") -> None:
    if found.events:
        listed = table("WHEN", "WHO", "FROM → TO", "BY", "COMMIT", "SCORE", "AGAINST", "WHY")
        for event in found.events:
            listed.add_row(*_row(event))
        show(listed)
    for event in found.unclaimed:
        typer.echo(f"not carried out: {' '.join(_row(event)[:4])}: another came first, or it was killed")
    for version, pin in found.pinned.items():
        note = f" ({pin.note})" if pin.note else ""
        typer.echo(f"pinned: version {version} stays out since {_when(pin)}, by {pin.who}{note}")
    holder = f"version {found.holder}" if found.holder else "nobody"
    before = f"; `diffctl rollback` goes to version {found.previous}" if found.previous else ""
    typer.echo(f"{found.name}: champion is {holder}{before}")


def _row(event: "Move") -> tuple[str, ...]:
    moved = f"{event.before or '-'} → {event.after}"
    why = f"{event.reason}: {event.note}" if event.note else event.reason
    commit = (event.commit or "")[:SHORT]
    scores = _score(event.score), _score(event.against)
    return _when(event), event.who, moved, event.how, commit, *scores, why


def _when(event: "Move") -> str:
    return datetime.fromtimestamp(event.at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _score(score: "Score | None") -> str:
    return "" if score is None else f"{score.metric} {score.value:.4g} ({score.cell})"
