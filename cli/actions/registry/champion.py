"""The champion of the registry and its history."""

from datetime import UTC, datetime
from functools import partial

import typer

from cli.commands import registry
from cli.shared.console import print_table, progress
from diffusion.system.errors import KEPT_OUT
from flows.registration import promote_version, register_model
from tracking.registry.champion_log import ChampionHistory, Move, Score
from tracking.registry.promotion import Override, check_note
from tracking.registry.registered_models import project_model, read_champion_history

SHORT_COMMIT = 9  # digits


def promote_model(options: registry.Promote) -> None:
    override = Override(options.force, check_note(options.reason), options.dry_run)
    if options.version:
        decision = promote_version(project_model(), options.version, override, progress)
    else:
        decision = register_model(override, progress)
    options.answer(vars(decision), str(decision))
    if not decision.passed:
        raise typer.Exit(KEPT_OUT)


def show_champions(options: registry.History) -> None:
    found = read_champion_history(project_model())
    options.answer(found.as_json(), partial(_show_history, found))


def _show_history(found: ChampionHistory) -> None:
    if found.events:
        headings = ("WHEN", "WHO", "FROM → TO", "BY", "COMMIT", "SCORE", "AGAINST", "WHY")
        print_table(headings, map(_row, found.events))
    for version, pin in found.pinned.items():
        note = f" ({pin.note})" if pin.note else ""
        typer.echo(f"pinned: version {version} is not promoted since {_when(pin)}, by {pin.who}{note}")
    holder = f"version {found.holder}" if found.holder else "none"
    before = f"; `diffctl rollback` goes to version {found.previous}" if found.previous else ""
    typer.echo(f"{found.name}: champion is {holder}{before}")


def _row(event: Move) -> tuple[str, ...]:
    moved = f"{event.before or '-'} → {event.after}"
    why = f"{event.reason}: {event.note}" if event.note else event.reason
    scores = _score(event.score), _score(event.against)
    return _when(event), event.who, moved, event.how, (event.commit or "")[:SHORT_COMMIT], *scores, why


def _when(event: Move) -> str:
    return datetime.fromtimestamp(event.at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _score(score: Score | None) -> str:
    return "" if score is None else f"{score.metric} {score.value:.4g} ({score.cell})"
