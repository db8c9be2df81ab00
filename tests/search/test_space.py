"""The section `search` and its points."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.search.search_config import SearchConfig, count_trials, grid, refuse_invalid
from diffusion.search.study import SearchStudy
from diffusion.system.errors import UsageError
from diffusion.system.params import with_fields
from diffusion.system.section import validate

RANGE = {"low": 1, "high": 5}
FIELDS = {
    "train.lr.rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "model.channels": {"low": 8, "high": 64, "log": True},
    "train.batch_size": {"low": 3, "high": 9},
    "model.channel_mult": [[1], [1, 2], [1, 2, 2]],
    "model.class_cond": [True, False],
}


def section(**values) -> SearchConfig:
    return validate(SearchConfig, {"fields": FIELDS, "trials": 5, **values}, "params.yaml: search")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"fields": {}}, "fields"),
        ({"fields": {"train.seed": []}}, "fields.train.seed"),
        ({"fields": {"sample.seed": [1]}}, "fields.sample.seed"),
        ({"fields": {"data.name": ["digits"]}}, "fields.data.name"),
        ({"fields": {"train.seed": [1, 1]}}, "fields.train.seed"),
        ({"fields": {"train.lr": [0.1], "train.lr.rate": [0.2]}}, "fields.train.lr"),
        ({"fields": {"train.seed": RANGE}, "method": "grid"}, "fields.train.seed"),
        ({"fields": {"train.seed": {"low": 2, "high": 2}}}, "not below"),
        ({"fields": {"train.lr": {"low": 0, "high": 1, "log": True}}}, "low > 0"),
        ({"fields": {"train.lr": {"low": 0.1, "high": float("inf")}}}, "fields.train.lr"),
        ({"trials": None}, "trials"),
    ],
)
def test_invalid_section_is_refused_by_field(values, field) -> None:
    with pytest.raises(UsageError, match=field):
        section(**values)


def test_grid_has_every_combination_once(tmp_path) -> None:
    made = section(fields={"train.seed": [0, 1], "train.lr": [0.1, 0.2, 0.3]}, method="grid", trials=None)
    study = SearchStudy(tmp_path, made)
    points = [study.propose(number) for number in range(count_trials(made))]
    assert len({tuple(point.values()) for point in points}) == len(points) == 6
    assert points == grid(made)


@settings(max_examples=20)
@given(st.integers(0, 2**40), st.integers(0, 200), st.sampled_from(["random", "tpe"]))
def test_proposals_are_in_the_space_and_reproducible(tmp_path_factory, seed, number, method) -> None:
    study = SearchStudy(tmp_path_factory.mktemp("study"), section(seed=seed, method=method))
    point = study.propose(number)
    assert point == study.propose(number)
    other = SearchStudy(tmp_path_factory.mktemp("study"), section(seed=seed + 1, method=method))
    rates = [one["train.lr.rate"] for one in (point, other.propose(number), study.propose(number + 1))]
    assert len(set(rates)) == 3
    assert set(point) == set(FIELDS)
    assert 1e-4 <= point["train.lr.rate"] <= 1e-2
    assert type(point["model.channels"]) is int
    assert 8 <= point["model.channels"] <= 64
    assert 3 <= point["train.batch_size"] <= 9
    assert list(point["model.channel_mult"]) in FIELDS["model.channel_mult"]
    assert study.start(point).point == {**point, "model.channel_mult": list(point["model.channel_mult"])}


def test_point_replaces_its_values_only() -> None:
    values = {"train": {"steps": 5, "lr": {"rate": 1}}, "data": {"name": "x"}}
    made = with_fields(values, {"train.lr.rate": 2, "model.channels": 8})
    changed = {"train": {"steps": 5, "lr": {"rate": 2}}, "model": {"channels": 8}}
    assert made == {**values, **changed}
    assert values["train"]["lr"] == {"rate": 1}
    with pytest.raises(UsageError, match="not keys"):
        with_fields(values, {"train.steps.more": 1})


def test_every_combination_of_values_and_range_ends_is_validated() -> None:
    made = section(fields={"train.seed": [0, 1, 2], "train.lr.rate": {"low": 0.5, "high": 2.0}})
    seen = []
    refuse_invalid({}, made, lambda values, origin: seen.append(values["train"]))
    assert seen == [{"seed": s, "lr": {"rate": r}} for s in (0, 1, 2) for r in (0.5, 2.0)]
    many = section(fields={f"model.f{i}": list(range(10)) for i in range(4)})
    with pytest.raises(UsageError, match="name fewer"):
        refuse_invalid({}, many, lambda values, origin: None)
