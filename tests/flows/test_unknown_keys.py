"""A misspelled key anywhere in prefect.yaml is found, and what Prefect does know is not."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.prefect_server.deployments import FILE
from flows.unknown_keys import process_template, unknown_keys
from tests.closure import ROOT

FREE = {"match", "match_related", "env", "labels", "definitions"}  # whose keys are anybody's

# What prefect.yaml has no example of, as Prefect takes it.
MORE: dict[str, Any] = {
    "push": {"prefect.deployments.steps.run_shell_script": {"id": "said", "script": "true"}},
    "deployments": [
        {
            "name": "more",
            "entrypoint": "flows.pipeline.pipeline",
            "work_pool": {"name": "processes", "work_queue_name": "one", "job_variables": {"labels": {}}},
            "pull": [{"flows.clone.update_clone": {"wait": 1}}, {"not.here": {"requires": "a-package"}}],
            "schedules": [{"interval": 60, "slug": "often", "parameters": {"fresh": True}}],
            "triggers": [
                {"type": "metric", "metric": {"name": "successes", "operator": "<", "threshold": 1}},
                {
                    "type": "compound",
                    "require": "all",
                    "within": 5,
                    "triggers": [{"type": "event", "expect": ["a"], "match": {"prefect.resource.id": "b"}}],
                },
            ],
        }
    ],
}


def plan() -> dict[str, Any]:
    """prefect.yaml and more, nothing of it shared."""
    values = yaml.safe_load((ROOT / FILE).read_text())
    values |= {**MORE, "deployments": values["deployments"] + MORE["deployments"]}
    copied: dict[str, Any] = json.loads(json.dumps(values))
    return copied


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key that Prefect, or a flow, reads."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield (*path, key)
            if key not in FREE:
                yield from places(value, (*path, key))
    elif isinstance(values, list):
        for number, value in enumerate(values):
            yield from places(value, (*path, number))


PLACES = [place for place in places(plan()) if "not.here" not in place]
KNOWN = {key for place in PLACES for key in place if isinstance(key, str)}


@st.composite
def misspelled(draw: st.DrawFn, word: str) -> str:
    """The word with a letter too many, one too few or two in another order."""
    at, letter = draw(st.integers(0, len(word) - 2)), draw(st.sampled_from("aesxz"))
    ways = [
        word[:at] + letter + word[at:],
        word[:at] + word[at + 1 :],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
    ]
    return draw(st.sampled_from(ways).filter(lambda made: made not in KNOWN))


def test_what_prefect_knows_is_let_through() -> None:
    assert list(unknown_keys(plan())) == []


@given(st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_misspelled_key_is_told_by_its_place(data: st.DataObject) -> None:
    *path, key = data.draw(st.sampled_from(PLACES))
    changed = values = plan()
    for part in path:
        values = values[part]
    wrong = data.draw(misspelled(key))
    values[wrong] = values.pop(key)
    told = list(unknown_keys(changed))
    owner = [str(part) for part in path if isinstance(part, str)][1:]
    assert any(wrong in name and all(part in name for part in owner) for name in told), told


def test_the_pool_that_is_there_says_which_job_variables_it_has() -> None:
    entry = plan()["deployments"][-1]
    entry["work_pool"]["job_variables"] = {"image": "python", "env": {}}
    changed = {"deployments": [entry]}
    assert list(unknown_keys(changed)) == ["more.work_pool.job_variables.image"]
    docker: dict[str, Any] = {"variables": {"properties": {"image": {}, "env": {}}}}
    assert list(unknown_keys(changed, {"processes": docker}.__getitem__)) == []


@pytest.mark.parametrize("value", [None, "{{ prefect.variables.all }}", [], 5])
def test_a_section_that_is_no_mapping_is_left_to_prefect(value: Any) -> None:
    for key in ("work_pool", "triggers", "schedules", "pull", "parameters", "concurrency_limit"):
        changed = plan()
        changed["deployments"][0][key] = value
        assert list(unknown_keys(changed)) == []


def test_a_trigger_of_no_type_is_told() -> None:
    changed = plan()
    changed["deployments"][0]["triggers"][0]["type"] = "evnt"
    assert list(unknown_keys(changed)) == ["retrain.triggers.type evnt"]


def test_a_pool_of_processes_has_an_environment() -> None:
    assert "env" in process_template("any")["variables"]["properties"]
