"""The champion log on a real MLflow store: concurrent and killed promotions, and rollbacks."""

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from diffusion.system.errors import DiffctlWarning, UsageError
from tests.helpers.champion_moves import Killed, PausedWork, move
from tests.helpers.mlflow_server import empty_database
from tests.helpers.scores_document import document
from tests.helpers.team import postgres
from tracking.keys import CHAMPION, PREVIOUS
from tracking.registry.champion_log import ConcurrentMove, History, Move, ensure_model, read_history, repair
from tracking.registry.promotion import Decision, Override, apply_gate, plan_rollback, preview_gate, roll_back
from tracking.store import connect

VERSIONS = 4
SCORES = document()
names = (f"model-{number}" for number in itertools.count())

pytestmark = pytest.mark.filterwarnings("ignore::diffusion.system.errors.DiffctlWarning")


@pytest.fixture
def sqlite(tmp_path, monkeypatch):
    """The URI of an empty store, which is the tracking store."""
    monkeypatch.chdir(tmp_path)
    uri = empty_database(tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def make_versions(client, count: int = VERSIONS) -> str:
    """Register so many versions of a new model, without a champion; return its name."""
    name = next(names)
    ensure_model(client, name)
    for _ in range(count):
        client.create_model_version(name, "s3://nowhere/model")
    return name


def promote(client, name: str, number: int) -> Decision:
    forced = Override(force=True, note="because")
    return apply_gate(client, client.get_model_version(name, str(number)), SCORES, forced)


def roll(client, name: str) -> History:
    return roll_back(client, plan_rollback(client, name), "it was bad")


def moves(history: History) -> list[tuple[int | None, int]]:
    return [(event.before, event.after) for event in history.events]


def test_promotions_and_rollbacks_are_recorded_in_order(sqlite):
    client = connect()
    name = make_versions(client)
    for number in (1, 3, 2):
        assert promote(client, name, number).champion == number
    assert roll(client, name).holder == 3, "the holder before, not version N - 1"
    history = roll(client, name)
    assert moves(history) == [(None, 1), (1, 3), (3, 2), (2, 3), (3, 1)]
    assert history.aliases == {CHAMPION: 1}
    assert set(history.pinned) == {2, 3}
    with pytest.raises(UsageError):
        roll(client, name)
    decision = preview_gate(client, name, 3, SCORES)
    assert not decision.passed
    assert "it was bad" in decision.reason
    assert promote(client, name, 3).champion == 3
    assert set(read_history(client, name).pinned) == {2}
    event = history.events[-1]
    assert (event.how, event.note, event.number) == ("rollback", "it was bad", 5)


def test_second_of_two_concurrent_promotions_fails(sqlite):
    client = connect()
    name = make_versions(client)
    promote(client, name, 1)
    slow = PausedWork(client, lambda client: promote(client, name, 2))
    while slow.waiting != "log_param":
        slow.step()
    promote(client, name, 3)
    slow.finish()
    assert isinstance(slow.error, ConcurrentMove)
    assert "version 3" in str(slow.error)
    history = read_history(client, name)
    assert moves(history) == [(None, 1), (1, 3)]
    assert [event.after for event in history.unclaimed] == [2]
    assert history.aliases == {CHAMPION: 3, PREVIOUS: 1}


def test_aliases_are_repaired_after_a_kill(sqlite):
    client = connect()
    name = make_versions(client)
    promote(client, name, 1)
    killed = PausedWork(client, lambda client: promote(client, name, 2))
    while killed.waiting != "set_registered_model_alias":
        killed.step()
    killed.kill()
    assert read_history(client, name).wrong_aliases == {CHAMPION: 2, PREVIOUS: 1}
    with pytest.warns(DiffctlWarning, match="champion of"):
        assert repair(client, name).aliases == {CHAMPION: 2, PREVIOUS: 1}


def test_alias_older_than_the_log_is_the_first_champion(sqlite):
    client, name = connect(), next(names)
    client.create_registered_model(name)
    for _ in range(2):
        client.create_model_version(name, "s3://nowhere/model")
    client.set_registered_model_alias(name, CHAMPION, "1")
    assert promote(client, name, 2).champion == 2
    history = read_history(client, name)
    assert moves(history) == [(1, 2)]
    assert history.previous == 1
    assert roll(client, name).aliases == {CHAMPION: 1}


def test_rescored_champion_is_one_holder_and_its_versions_are_pinned_together():
    moved = [(None, 1, "gate"), (1, 2, "gate"), (2, 3, "anew"), (3, 4, "anew")]

    def history(*more: tuple[int, int, str]) -> History:
        events = [Move(**move(number, *one)) for number, one in enumerate([*moved, *more], 1)]
        return History("it", events=tuple(events))

    assert history().holders == [1, 4]
    back = history((4, 1, "rollback"))
    assert back.holders == [1]
    assert set(back.pinned) == {2, 3, 4}
    assert set(history((4, 1, "rollback"), (1, 3, "force")).pinned) == {2, 4}
    to_itself = history((4, 2, "rollback"))
    assert to_itself.holders == [1, 4, 2]
    assert set(to_itself.pinned) == {3, 4}
    assert set(history((4, 2, "anew"), (2, 1, "rollback")).pinned) == {2, 3, 4}


def test_deleted_champion_can_be_succeeded(sqlite):
    client = connect()
    name = make_versions(client)
    promote(client, name, 1)
    client.delete_model_version(name, "1")
    assert preview_gate(client, name, 2, SCORES).passed
    assert promote(client, name, 2).champion == 2
    assert read_history(client, name).aliases == {CHAMPION: 2}
    with pytest.raises(UsageError, match="deleted"):
        roll(client, name)


class Promoters(RuleBasedStateMachine):
    """Two concurrent promoters of one registered model, checked against the claims that succeeded."""

    uri: str

    @initialize()
    def create(self) -> None:
        self.client = connect(self.uri)
        self.name = make_versions(self.client)
        self.works: dict[int, PausedWork] = {}
        self.recorded: dict[str, str] = {}  # tag → value of every recorded move
        self.chain: list[tuple[str, int, str]] = []  # id, version and kind of every claimed move
        self.killed = False

    def holders(self) -> list[int]:
        """Return the stack of holders that follows from the chain."""
        stack: list[int] = []
        for _, version, how in self.chain:
            if how == "rollback":
                stack.pop()
                assert stack[-1] == version
            else:
                stack = [other for other in stack if other != version] + [version]
        return stack

    @rule(who=st.sampled_from([0, 1]), number=st.integers(1, VERSIONS))
    def start_promotion(self, who: int, number: int) -> None:
        if who not in self.works:
            self.works[who] = PausedWork(self.client, lambda client: promote(client, self.name, number))

    @rule(who=st.sampled_from([0, 1]))
    def start_rollback(self, who: int) -> None:
        if who not in self.works:
            self.works[who] = PausedWork(self.client, lambda client: roll(client, self.name))

    @precondition(lambda self: self.works)
    @rule(data=st.data(), count=st.integers(1, 12) | st.just(1000))
    def step(self, data: st.DataObject, count: int) -> None:
        who = data.draw(st.sampled_from(sorted(self.works)))
        for _ in range(count):
            if self.works[who].waiting:
                self.works[who].step()
                self.follow(self.works[who])
        if not self.works[who].waiting:
            self.end(who)

    @precondition(lambda self: self.works)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        who = data.draw(st.sampled_from(sorted(self.works)))
        work = self.works.pop(who)
        if work.waiting:
            work.kill()
            assert isinstance(work.error, Killed)
            self.killed = True

    @rule()
    def repair(self) -> None:
        history = repair(self.client, self.name)
        self.check_aliases(history)
        if not self.works:
            self.killed = False

    def follow(self, work: PausedWork) -> None:
        """Update the model by the call that was just made."""
        call, arguments, worked = work.calls[-1]
        if call == "set_registered_model_tag":
            assert arguments[1] not in self.recorded, "a record was overwritten"
            self.recorded[arguments[1]] = arguments[2]
        elif call == "log_param" and worked:
            _, number, id = arguments
            assert int(number) == len(self.chain) + 1, "a claim out of order"
            event = next(e for e in read_history(self.client, self.name).events if e.id == id)
            self.chain.append((id, event.after, event.how))

    def end(self, who: int) -> None:
        """Check that the promoter's result matches the chain."""
        work = self.works.pop(who)
        tags = {arguments[1] for call, arguments, _ in work.calls if call == "set_registered_model_tag"}
        own = [key.rpartition(".")[2] for key in self.recorded if key in tags]
        happened = {id for id, _, _ in self.chain}
        if work.error is None:
            assert set(own) <= happened
            if isinstance(work.result, Decision) and work.result.promoted:
                assert len(own) == 1
        elif isinstance(work.error, ConcurrentMove):
            assert not set(own) & happened
        else:
            assert isinstance(work.error, UsageError), work.error  # there is no earlier champion
            assert not own

    def check_aliases(self, history: History) -> None:
        wanted = dict(zip((CHAMPION, PREVIOUS), reversed(self.holders()), strict=False))
        assert history.aliases == wanted

    @invariant()
    def history_is_the_models(self) -> None:
        if not hasattr(self, "chain"):
            return
        history = read_history(self.client, self.name)
        assert [(event.id, event.after, event.how) for event in history.events] == self.chain
        befores = [None, *(version for _, version, _ in self.chain)]
        assert [event.before for event in history.events] == befores[: len(self.chain)]
        tags = self.client.get_registered_model(self.name).tags
        assert {key: tags[key] for key in self.recorded} == self.recorded
        assert len(history.events) + len(history.unclaimed) == len(self.recorded)
        if not self.works and not self.killed:
            self.check_aliases(history)

    def teardown(self) -> None:
        for work in getattr(self, "works", {}).values():
            if work.waiting:
                work.kill()
        if hasattr(self, "chain"):
            self.check_aliases(repair(self.client, self.name))


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path, monkeypatch) -> Iterator[str]:
    """The URI of an empty store of each database."""
    monkeypatch.chdir(tmp_path)
    if request.param == "sqlite":
        yield empty_database(tmp_path / "mlflow.db")
        return
    with postgres() as uri:
        yield uri


@pytest.mark.slow
def test_promoters_paused_and_killed_at_any_call_keep_the_log_consistent(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    machine = type("PromotersHere", (Promoters,), {"uri": store})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.slow
def test_promotion_killed_before_any_call_is_complete_or_absent(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    client = connect()
    for calls in itertools.count():
        name = make_versions(client, 2)
        promote(client, name, 1)
        work = PausedWork(client, lambda client, name=name: promote(client, name, 2))
        for _ in range(calls):
            if work.waiting:
                work.step()
        if not work.waiting:
            break
        work.kill()
        history = repair(client, name)
        assert history.aliases == ({CHAMPION: 2, PREVIOUS: 1} if history.holder == 2 else {CHAMPION: 1})
        assert promote(client, name, 2).champion == 2
    assert calls > 10
