"""The section `search`: what it refuses, and what its fields stand for."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.search.config import SearchConfig
from diffusion.search.methods import METHODS, params_of, value_of
from diffusion.search.space import applied, count_trials, grid, refuse_impossible
from diffusion.system.errors import UsageError
from diffusion.system.section import validate

RANGE = {"low": 1, "high": 5}
FIELDS = {
    "train.lr.rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "model.channels": {"low": 8, "high": 64, "log": True},
    "train.batch_size": {"low": 3, "high": 9},
    "model.channel_mult": [[1], [1, 2], [1, 2, 2]],
    "model.class_cond": [True, False],
}


def section(**values):
    return validate(SearchConfig, {"fields": FIELDS, "trials": 5, **values}, "params.yaml: search")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"fields": {}}, "fields"),
        ({"fields": {"train.seed": []}}, "fields.train.seed"),
        ({"fields": {"sample.seed": [1]}}, "diffctl sweep"),
        ({"fields": {"data.name": ["digits"]}}, "decides a training"),
        ({"fields": {"train.seed": [1, 1]}}, "each value may stand once"),
        ({"fields": {"train.lr": [0.1], "train.lr.rate": [0.2]}}, "lies in fields.train.lr"),
        ({"fields": {"train.seed": RANGE}, "method": "grid"}, "needs a list"),
        ({"fields": {"train.seed": {"low": 2, "high": 2}}}, "not below"),
        ({"fields": {"train.lr": {"low": 0, "high": 1, "log": True}}}, "low > 0"),
        ({"fields": {"train.lr": {"low": 0.1, "high": float("inf")}}}, "fields.train.lr"),
        ({"trials": None}, "how many"),
        ({"trials": 0}, "trials"),
        ({"method": "bayes"}, "method"),
    ],
)
def test_what_is_no_search_is_refused_by_its_field(values, told) -> None:
    with pytest.raises(UsageError, match=told):
        section(**values)


def test_a_grid_is_every_combination_once() -> None:
    made = section(fields={"train.seed": [0, 1], "train.lr": [0.1, 0.2, 0.3]}, method="grid", trials=None)
    points = [METHODS["grid"](made, number, []) for number in range(count_trials(made))]
    assert len({tuple(point.values()) for point in points}) == len(points) == 6
    assert points == grid(made)


@settings(deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 200), st.sampled_from(["random", "tpe"]))
def test_a_point_lies_in_the_space_and_is_the_same_again(seed: int, number: int, method: str) -> None:
    made = section(seed=seed)
    point = METHODS[method](made, number, [])
    assert point == METHODS[method](made, number, [])
    assert set(point) == set(FIELDS)
    assert 1e-4 <= point["train.lr.rate"] <= 1e-2
    assert type(point["model.channels"]) is int
    assert 8 <= point["model.channels"] <= 64
    assert 3 <= point["train.batch_size"] <= 9
    assert list(point["model.channel_mult"]) in FIELDS["model.channel_mult"]
    told = params_of(made, point)
    assert {name: value_of(made.fields[name], told[name]) for name in told} == point


def test_points_of_other_numbers_and_seeds_differ() -> None:
    drawn = [
        METHODS[method](section(seed=seed), number, [])["train.lr.rate"]
        for method in ("random", "tpe")
        for seed in (0, 1)
        for number in range(4)
    ]
    assert len(set(drawn)) == len(drawn)


def test_a_value_takes_its_place_and_nothing_else_changes() -> None:
    values = {"train": {"steps": 5, "lr": {"rate": 1}}, "data": {"name": "digits"}}
    made = applied(values, {"train.lr.rate": 2, "model.channels": 8})
    assert made == {
        "train": {"steps": 5, "lr": {"rate": 2}},
        "data": {"name": "digits"},
        "model": {"channels": 8},
    }
    assert values["train"]["lr"] == {"rate": 1}
    with pytest.raises(UsageError, match="not keys"):
        applied(values, {"train.steps.more": 1})


def test_every_point_and_every_corner_is_looked_at() -> None:
    made = section(fields={"train.seed": [0, 1, 2], "train.lr.rate": {"low": 0.5, "high": 2.0}})
    seen = []
    refuse_impossible({}, made, lambda values, origin: seen.append(values["train"]))
    assert seen == [{"seed": s, "lr": {"rate": r}} for s in (0, 1, 2) for r in (0.5, 2.0)]
    many = section(fields={f"model.f{i}": list(range(10)) for i in range(4)})
    with pytest.raises(UsageError, match="name fewer"):
        refuse_impossible({}, many, lambda values, origin: None)
