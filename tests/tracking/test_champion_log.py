"""The champion log on a real MLflow store: concurrent and killed moves, and what a user can delete."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from diffusion.system.errors import DiffctlWarning
from tests.helpers.scores_document import document
from tests.helpers.team import postgres
from tracking.keys import CHAMPION, HISTORY_RUN, PREVIOUS
from tracking.registry.champion_log import (
    ChampionHistory,
    ConcurrentMove,
    Move,
    ensure_model,
    make_move,
    read_history,
    repair,
)
from tracking.registry.promotion import Override, apply_gate
from tracking.store import connect

SCORES = document()
names = (f"model-{number}" for number in itertools.count())


def move(number: int, before: int | None, after: int, how: str) -> Move:
    fixed = {"id": f"{number:032x}", "at": 1_700_000_000_000, "who": "ann@host", "reason": "better"}
    return Move(**fixed, number=number, before=before, after=after, how=how)


@pytest.fixture
def client(uri):
    """A client of the project's empty store."""
    return connect(uri)


def make_versions(client, count: int = 3) -> str:
    """Register so many versions of a new model, without a champion; return its name."""
    name = next(names)
    ensure_model(client, name)
    for _ in range(count):
        client.create_model_version(name, "s3://nowhere/model")
    return name


def promote(client, history: ChampionHistory, number: int) -> ChampionHistory:
    """Make a version champion after this history."""
    return make_move(client, history, how="gate", after=number, reason="better")


def make_moves(client, name: str, *numbers: int) -> ChampionHistory:
    """Make these versions champion, one after the other."""
    for number in numbers:
        promote(client, read_history(client, name), number)
    return read_history(client, name)


def moves(history: ChampionHistory) -> list[tuple[int | None, int]]:
    return [(event.before, event.after) for event in history.events]


def history_of(*moved: tuple[int | None, int, str]) -> ChampionHistory:
    events = tuple(move(number, *one) for number, one in enumerate(moved, 1))
    return ChampionHistory("it", events=events, count=len(events))


@given(st.lists(st.integers(0, 4), max_size=12))
def test_rollbacks_return_along_the_stack_of_champions(choices):
    """Choice 0 is a rollback, other choices promote that version."""
    stack: list[int] = []
    moved: list[tuple[int | None, int, str]] = []
    for choice in choices:
        before = stack[-1] if stack else None
        if choice and choice != before:
            stack.append(choice)
            moved.append((before, choice, "gate"))
        elif not choice and len(stack) > 1:
            stack.pop()
            moved.append((before, stack[-1], "rollback"))
    history = history_of(*moved)
    assert history.holders == stack
    assert (history.holder, history.previous) == (([None, None, *stack])[-1], ([None, None, *stack])[-2])


def test_rescored_champion_is_one_holder_and_its_versions_are_pinned_together():
    def history(*more: tuple[int, int, str]) -> ChampionHistory:
        return history_of((None, 1, "gate"), (1, 2, "gate"), (2, 3, "anew"), (3, 4, "anew"), *more)

    assert history().holders == [1, 4]
    back = history((4, 1, "rollback"))
    assert back.holders == [1]
    assert set(back.pinned) == {2, 3, 4}
    for number in (2, 3, 4):
        again = (4, 1, "rollback"), (1, number, "force")
        assert not history(*again).pinned
        assert set(history(*again, (number, 1, "rollback")).pinned) == {2, 3, 4}
    to_itself = history((4, 2, "rollback"))
    assert to_itself.holders == [1, 4, 2]
    assert set(to_itself.pinned) == {3, 4}
    assert set(history((4, 2, "anew"), (2, 1, "rollback")).pinned) == {2, 3, 4}


def test_second_of_two_moves_after_one_history_fails(client):
    name = make_versions(client)
    seen = make_moves(client, name, 1)
    promote(client, seen, 3)
    with pytest.raises(ConcurrentMove, match="version 2"):
        promote(client, seen, 2)
    history = read_history(client, name)
    assert moves(history) == [(None, 1), (1, 3)]
    assert history.aliases == {CHAMPION: 3, PREVIOUS: 1}


def test_move_whose_answer_is_lost_is_carried_out(client, monkeypatch):
    log_param = client.log_param

    def lose_the_answer(*arguments):
        log_param(*arguments)
        raise MlflowException("API request failed with error code 504")

    monkeypatch.setattr(client, "log_param", lose_the_answer)
    history = make_moves(client, make_versions(client), 1, 2)
    assert moves(history) == [(None, 1), (1, 2)]
    assert history.aliases == {CHAMPION: 2, PREVIOUS: 1}


def test_alias_created_by_another_process_at_the_same_time_is_set_again(client, monkeypatch):
    errors = [MlflowException("UNIQUE constraint failed: registered_model_aliases.alias")]
    set_alias = client.set_registered_model_alias

    def create_concurrently(*arguments):
        if errors:
            raise errors.pop()
        set_alias(*arguments)

    monkeypatch.setattr(client, "set_registered_model_alias", create_concurrently)
    assert make_moves(client, make_versions(client), 1).aliases == {CHAMPION: 1}


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, uri):
    """The URI of an empty store of each database."""
    if request.param == "sqlite":
        yield uri
        return
    with postgres() as other:
        yield other


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::diffusion.system.errors.DiffctlWarning")
def test_concurrent_promoters_make_one_chain_of_moves(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    client = connect()
    name = make_versions(client, 4)

    def promote_often(number: int) -> list[bool]:
        succeeded = []
        for _ in range(6):
            try:
                succeeded.append(promote(client, read_history(client, name), number).count > 0)
            except ConcurrentMove:
                succeeded.append(False)
        return succeeded

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(promote_often, range(1, 5)))
    history = repair(client, name)
    after = [event.after for event in history.events]
    assert [event.before for event in history.events] == [None, *after[:-1]]
    assert [after.count(number) for number in range(1, 5)] == [sum(one) for one in results]
    assert history.aliases[CHAMPION] == after[-1]


class Killed(BaseException):
    """The process ended here."""


class KilledClient:
    """A client whose process is killed before its call number `calls`."""

    def __init__(self, client, calls: int) -> None:
        self._client, self.left = client, calls

    def __getattr__(self, name):
        if not self.left:
            raise Killed
        self.left -= 1
        return getattr(self._client, name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::diffusion.system.errors.DiffctlWarning")
def test_move_killed_before_any_call_is_complete_or_absent(client):
    holders = []
    for calls in itertools.count():
        name = make_versions(client)
        killed = KilledClient(client, calls)
        try:
            promote(killed, make_moves(client, name, 1), 2)
        except Killed:
            pass
        else:
            break
        history = repair(client, name)
        assert history.aliases == ({CHAMPION: 2, PREVIOUS: 1} if history.holder == 2 else {CHAMPION: 1})
        assert make_moves(client, name, 3).holder == 3
        holders.append(history.holder)
    assert set(holders) == {1, 2}


def test_alias_moved_by_hand_is_restored_with_a_warning(client):
    name = make_versions(client)
    make_moves(client, name, 1, 2)
    client.set_registered_model_alias(name, CHAMPION, "3")
    with pytest.warns(DiffctlWarning, match="champion of"):
        assert repair(client, name).aliases == {CHAMPION: 2, PREVIOUS: 1}


def test_alias_older_than_the_log_is_the_first_champion(client):
    name = next(names)
    client.create_registered_model(name)
    for _ in range(2):
        client.create_model_version(name, "s3://nowhere/model")
    client.set_registered_model_alias(name, CHAMPION, "1")
    history = make_moves(client, name, 2)
    assert moves(history) == [(1, 2)]
    assert history.aliases == {CHAMPION: 2, PREVIOUS: 1}


def test_deleted_champion_can_be_succeeded(client):
    name = make_versions(client)
    make_moves(client, name, 1)
    client.delete_model_version(name, "1")
    second = client.get_model_version(name, "2")
    assert apply_gate(client, name, second, SCORES, Override(dry_run=True)).passed
    assert apply_gate(client, name, second, SCORES).champion == 2
    assert read_history(client, name).aliases == {CHAMPION: 2}


def test_no_deleted_tag_or_run_changes_the_history(client):
    name = make_versions(client)
    before = make_moves(client, name, 1, 2)
    for key in client.get_registered_model(name).tags:
        client.delete_registered_model_tag(name, key)
    client.delete_run(before.run_id)
    assert read_history(client, name) == before
    assert moves(make_moves(client, name, 3)) == [(None, 1), (1, 2), (2, 3)]
    assert HISTORY_RUN in client.get_registered_model(name).tags


@pytest.mark.parametrize("lost", [1, 2])
def test_history_with_a_damaged_move_is_read_and_continued(client, lost):
    name = make_versions(client)
    run_id = client.get_registered_model(name).tags[HISTORY_RUN]
    for event in (move(1, None, 1, "gate"), move(2, 1, 2, "force")):
        value = "damaged" if event.number == lost else event.model_dump_json()
        client.log_param(run_id, f"{event.number:06d}", value)
        client.set_registered_model_alias(name, CHAMPION, str(event.after))
    with pytest.warns(DiffctlWarning, match=f"move {lost}"):
        history = repair(client, name)
    assert (history.holder, history.previous) == (2, 1)
    with pytest.warns(DiffctlWarning, match=f"move {lost}"):
        history = promote(client, history, 3)
    assert history.events[-1].number == 3
    assert history.aliases == {CHAMPION: 3, PREVIOUS: 2}
