"""The moments of reboots are drawn from a seed, and are told from what lies in a run's folder."""

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

from diffusion.layout import CELL_RUNS, SCORES, TRAIN_RUNS
from tests.helpers.reboot import EVENTS, SAVE_EVERY, Moment, drawn


def test_every_event_is_drawn_at_counts_that_a_run_comes_to_and_again_from_the_same_seed() -> None:
    moments = [drawn(0, number) for number in range(1, 401)]
    assert moments == [drawn(0, number) for number in range(1, 401)]
    assert moments != [drawn(1, number) for number in range(1, 401)]
    assert all(1 <= moment.count <= EVENTS[moment.event][1] for moment in moments)
    assert min(Counter(moment.event for moment in moments).values()) > 50


def test_a_moment_has_come_when_so_many_are_seen(tmp_path: Path) -> None:
    def come() -> set[str]:
        return {event for event in EVENTS if Moment(event, 1).has_come(tmp_path)}

    assert come() == set()
    state = tmp_path / TRAIN_RUNS / f"abc/state-{2 * SAVE_EVERY:08d}.sealed"
    unit = tmp_path / CELL_RUNS / "abc/def/00000000-00000008.npy"
    for path, event in (
        (state, "states saved"),
        (unit, "units sampled"),
        (tmp_path / SCORES, "files of scores"),
    ):
        path.parent.mkdir(parents=True)
        path.touch()
        assert event in come()
    assert Moment("states saved", 2).has_come(tmp_path)
    assert not Moment("states saved", 3).has_come(tmp_path)
    assert not Moment("units sampled", 2).has_come(tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert "models registered" not in come()
        database.execute("CREATE TABLE registered_models (name TEXT)")
        assert "models registered" not in come()
        database.execute("INSERT INTO registered_models VALUES ('diffctl-digits')")
        database.commit()
        assert come() == set(EVENTS)
