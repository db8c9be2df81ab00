"""Keys and names of earlier versions: translated in stored documents, refused in params.yaml."""

import pytest

from diffusion.system.errors import UsageError
from diffusion.system.params import parse_yaml
from diffusion.system.renamed import refuse_renamed, rename_keys, translate, translate_names


def test_keys_of_a_document_are_translated_at_their_own_place_only():
    old = {"train": {"averages": {"widths": [0.1], "every": 4}, "widths": 1}, "averages": 2}
    new = {"train": {"ema_profiles": {"sigma_rel": [0.1], "every": 4}, "widths": 1}, "averages": 2}
    assert translate("params", old) == translate("params", new) == new
    assert list(old["train"]) == ["averages", "widths"]


def test_entries_of_a_list_have_its_key_as_parent():
    card, front = {"evaluations": 3}, [{"evaluations": 1}, {"evaluations": 2}]
    old = {"front": front, "cells": {"a": {"card": card, "evaluations": 4}}, "evaluations": 5}
    assert translate("scores", old) == {
        "front": [{"nfe": 1}, {"nfe": 2}],
        "cells": {"a": {"card": {"nfe": 3}, "evaluations": 4}},
        "evaluations": 5,
    }


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("params", "train.averages.widths", "train.ema_profiles.sigma_rel"),
        ("params", "train.averages.every", "train.ema_profiles.every"),
        ("params", "widths", "widths"),
        ("tags", "diffctl.ema_width", "diffctl.ema_sigma_rel"),
        ("tags", "diffctl.start.data", "diffctl.init_from.data"),
        ("metrics", "heldout/loss", "val/loss"),
        ("metrics", "loss", "loss"),
    ],
)
def test_flat_names_are_translated(kind, old, new):
    assert translate_names(kind, {old: 1}) == {new: 1}


@pytest.mark.parametrize(
    ("values", "old", "new"),
    [
        ({"train": {"averages": {"every": 4}}}, "train.averages", "train.ema_profiles"),
        ({"train": {"averages": {"widths": 4}}}, "train.averages.widths", "train.ema_profiles.sigma_rel"),
        ({"search": {"fields": {"train.start": [1]}}}, "train.start", "train.init_from"),
    ],
)
def test_an_old_key_of_params_is_refused_with_its_new_name(values, old, new):
    with pytest.raises(UsageError, match=f"here: .*{old} was renamed, write {new}"):
        refuse_renamed(values, "here")


OLD = """# course: a comment
train:
  lr: {course: cosine, rate: 0.002}  # the course
  averages:  # averages
    widths: [0.1]
  steps: 5
search: {fields: {train.lr.course: [a, b], "evaluate.also": [[]], train.steps: [1]}}
"""
NEW = """# course: a comment
train:
  lr: {schedule: cosine, rate: 0.002}  # the course
  ema_profiles:  # averages
    sigma_rel: [0.1]
  steps: 5
search: {fields: {train.lr.schedule: [a, b], "evaluate.extra_extractors": [[]], train.steps: [1]}}
"""


def test_keys_of_a_params_file_are_renamed_and_nothing_else():
    with pytest.raises(UsageError, match=r"train.averages.widths .*; evaluate.also was renamed"):
        refuse_renamed(parse_yaml(OLD), "params.yaml")
    assert rename_keys(OLD) == rename_keys(NEW) == NEW
    refuse_renamed(parse_yaml(NEW), "params.yaml")


@pytest.mark.parametrize(
    ("text", "why"),
    [("a: 1\n<<<<<<< yours\nb: 2\n", "line 3: "), ("a: 1\nb: [", "line 2: "), ("a: \x00", "#x0000")],
)
def test_a_file_that_is_no_yaml_is_refused_with_its_line(text, why):
    with pytest.raises(UsageError, match=f"params.yaml is not readable as YAML: .*{why}"):
        rename_keys(text)
