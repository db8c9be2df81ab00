"""diffusers' trainings in the speedrun: the rate, the search, and its resume."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import diffusers_entry, quality
from benchmarks.diffusers_recipes import RECIPES
from diffusion.config import load
from diffusion.system.devices import default_device
from diffusion.train.plan import plan_training

pytest.importorskip("diffusers", reason="an extra")


def test_rate_rises_by_steps_and_falls_by_the_clock() -> None:
    example, before = RECIPES["diffusers-example"], RECIPES["diffusers"]
    assert example.rate_at(249, 0.0) == pytest.approx(1e-4 / 2)
    assert example.rate_at(1000, 0.25) == pytest.approx(1e-4 * (1 + math.cos(math.pi / 4)) / 2)
    assert before.rate_at(0, 0.0) == before.rate_at(99, 0.9) == 1e-3
    assert len(list(RECIPES["diffusers-tuned"].candidates())) == 12


@pytest.mark.slow
def test_search_is_resumed_and_its_cost_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPES["diffusers-tuned"], searched=((4, 8), (1e-3,)))
    monkeypatch.setitem(RECIPES, "small", recipe)
    config, device = load(quality.PROFILES / "digits.yaml"), default_device()
    store, test = quality.prepared(config, tmp_path / "data")
    judge = quality.Judge(test.images, device)
    judges = SimpleNamespace(choice=judge, build=judge, report_on=lambda images, file: {"fd": judge(images)})
    plan = plan_training(config, store.meta, device)
    started = diffusers_entry.Run(plan, store, quality.Size(0.5, 40, 2), device)
    arguments = (started, judges, tmp_path, tmp_path / "kept.npy")
    first = diffusers_entry.run("small", *arguments)
    assert first["search"]["trainings"] == 4  # two short ones, and both of them whole
    assert first["search"]["seconds"] == pytest.approx(sum(one[1] for one in searched(tmp_path)), abs=0.1)
    assert [len(one["fd"]) for one in first["tried"]] == [1, 1, 3, 3]  # averages
    best = min(first["tried"][2:], key=lambda one: min(one["fd"].values()))
    assert best["change"].items() >= {name: first["sample"][name] for name in ("batch", "rate")}.items()
    assert first["average"] == f"decay {min(best['fd'], key=best['fd'].__getitem__)}"
    assert (first["batch"], first["nfe"]) == (best["change"]["batch"], 2)
    before = searched(tmp_path)
    assert diffusers_entry.run("small", *arguments)["tried"] == first["tried"]
    assert searched(tmp_path) == before


def searched(folder: Path) -> list[tuple[str, float]]:
    """Return the stored trainings of the search, with their seconds."""
    files = sorted((folder / "search/small").glob("*.json"))
    return [(file.name, json.loads(file.read_text())["seconds"]) for file in files]
