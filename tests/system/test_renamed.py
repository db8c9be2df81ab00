import pytest

from diffusion.system import renamed
from diffusion.system.errors import UsageError
from diffusion.system.renamed import refuse_renamed, translate, translate_names

KEYS = {
    ("train", "averages"): "ema_profiles",
    ("averages", "widths"): "sigma_rel",
    ("front", "cost"): "nfe",
    ("card", "cost"): "nfe",
}
NAMES = {"tags": {"diffctl.width": "diffctl.sigma_rel", "old/*": "new/*"}}


@pytest.fixture(autouse=True)
def tables(monkeypatch):
    monkeypatch.setattr(renamed, "KEYS", KEYS)
    monkeypatch.setattr(renamed, "NAMES", NAMES)


def test_keys_of_a_document_are_translated_at_their_own_place_only():
    old = {"train": {"averages": {"widths": [0.1], "every": 4}, "widths": 1}, "averages": 2}
    new = {"train": {"ema_profiles": {"sigma_rel": [0.1], "every": 4}, "widths": 1}, "averages": 2}
    assert translate("params", old) == translate("params", new) == new
    assert list(old["train"]) == ["averages", "widths"]


def test_entries_of_a_list_have_its_key_as_parent():
    old = {"front": [{"cost": 1}, {"cost": 2}], "cells": {"a": {"card": {"cost": 3}, "cost": 4}}, "cost": 5}
    assert translate("scores", old) == {
        "front": [{"nfe": 1}, {"nfe": 2}],
        "cells": {"a": {"card": {"nfe": 3}, "cost": 4}},
        "cost": 5,
    }


def test_flat_names_are_translated():
    old = {"train.averages.widths": "[0.1]", "train.averages.every": "4", "widths": "1"}
    new = {"train.ema_profiles.sigma_rel": "[0.1]", "train.ema_profiles.every": "4", "widths": "1"}
    assert translate_names("params", old) == new
    assert translate_names("tags", {"diffctl.width": "0.1", "old/a": "b", "x": "y"}) == {
        "diffctl.sigma_rel": "0.1",
        "new/a": "b",
        "x": "y",
    }


@pytest.mark.parametrize(
    ("values", "old", "new"),
    [
        ({"train": {"averages": {"every": 4}}}, "train.averages", "train.ema_profiles"),
        ({"train": {"averages": {"widths": 4}}}, "train.averages.widths", "train.ema_profiles.sigma_rel"),
        (
            {"search": {"fields": {"train.averages.widths": [1]}}},
            "train.averages.widths",
            "train.ema_profiles.sigma_rel",
        ),
    ],
)
def test_an_old_key_of_params_is_refused_with_its_new_name(values, old, new):
    with pytest.raises(UsageError, match=f"here: .*{old} was renamed, write {new}"):
        refuse_renamed(values, "here")
