"""The sweep grid: its cells, their names, and errors for values that are invalid or have no effect."""

import math
import re
from itertools import product
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from diffusion.config import parse
from diffusion.protocol.grid import (
    Cell,
    cell_order,
    cell_settings,
    describe_cell,
    describe_line,
    format_option,
    grid,
    settings_axes,
    settings_card,
)
from diffusion.protocol.option_tables import AXES, MODEL_AXES
from diffusion.protocol.sample_sections import SampleConfig, SweepConfig
from diffusion.protocol.samplers import SAMPLERS, Noise
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import SPACINGS
from diffusion.system.errors import UsageError
from tests.conftest import params

GRID = {"steps": [5, 10, 20, 50], "eta": [0.0, 0.5, 1.0]}
EMA_PROFILES = {"ema_profiles": {"sigma_rel": [0.05, 0.1], "every": 4}}
BOTH = ["ddim", "dpm-solver++"]
LIMITS = {"guidance_interval": [None, [0.2, 5], [0, 1e-05]]}
RULES = {"guide": ["a"], "guidance_rule": ["classifier-free", "autoguidance"]}
W = "-guidance2"


@pytest.mark.parametrize(("w", "sweep", "expected"), [
    (0, {"steps": [50, 5], "eta": [0.5]}, ["steps50-eta0.5", "steps5-eta0.5"]),
    (0, {"steps": [1, 5], "eta": [0, 1]}, ["steps1-eta0", "steps5-eta0", "steps5-eta1"]),
    (0, {"eta": [0, 1], "sampler": BOTH},
     ["-sampler_ddim", "-sampler_dpm-solver++", "steps5-eta1-sampler_ddim"]),
    (0, {"eta": [0, 1], "noise": ["small", "large"]},
     ["", "steps5-eta1-noise_small", "steps5-eta1-noise_large"]),
    (2, LIMITS, ["", "-guidance_interval_0.2_5", "-guidance_interval_0_1e-05"]),
    (0, {"guidance": [0, 2], "guide": [None, "b/a", "a"]},
     ["-guidance0", W, f"{W}-guide_b_a", f"{W}-guide_a"]),
    (2, RULES, ["-guidance_rule_classifier-free", "-guidance_rule_autoguidance-guide_a"]),
])  # fmt: skip
def test_axes_vary_only_where_they_have_an_effect(
    w: float, sweep: dict[str, Any], expected: list[str]
) -> None:
    config = parse(params(sample={"guidance": w}, sweep={"steps": [5], "eta": [0], **sweep}), "test")
    names = [name if name.startswith("steps") else f"steps5-eta0{name}" for name in expected]
    assert [cell.name for cell in grid(config.sample, config.sweep)] == names


def test_every_axis_is_in_the_name_the_settings_and_the_card() -> None:
    sweep = {"steps": [5], "eta": [1.0], "sampler": ["ddim"], "noise": ["large"], "spacing": ["trailing"]}
    sweep |= {"guidance": [1.5], "guidance_rule": ["autoguidance"], "guide": ["runs/a.safetensors"]}
    sweep |= {"guidance_interval": [[0.2, 5]], "classifier_scale": [2], "cond_noise": [0.25], "ema": [0.1]}
    model = {"low_res": 4, "cond_noise": 0.5}
    config = parse(params(train=EMA_PROFILES, model=model, sample={"classifier": "c"}, sweep=sweep), "test")
    (cell,) = grid(config.sample, config.sweep)
    guided = "guidance1.5-guidance_rule_autoguidance-guide_runs_a.safetensors-guidance_interval_0.2_5"
    last = "classifier_scale2-cond_noise0.25-ema0.1"
    name = f"steps5-eta1-sampler_ddim-noise_large-spacing_trailing-{guided}-{last}"
    assert cell.name == name
    card = settings_card(cell_settings(config.sample, cell))
    sampling_axes = {axis: value for axis, value in cell.axes.items() if axis not in MODEL_AXES}
    assert {axis: card[axis] for axis in AXES if axis not in MODEL_AXES} == sampling_axes
    assert card.keys().isdisjoint(MODEL_AXES), "the code that loads the model adds the model's fields"
    assert set(cell.axes) == set(AXES)
    description = "η = 1, ddim, noise large, spacing trailing, w = 1.5, autoguidance, guided by "
    description += "runs/a.safetensors, σ/α in 0.2:5, s = 2, noise 0.25 on low resolutions, σ_rel = 0.1"
    assert describe_line(cell.axes) == description
    assert describe_cell(cell.axes).startswith("5 steps, η = 1, ")
    assert describe_cell(Cell(steps=1, eta=0.0).axes) == "1 step, η = 0"


def test_interval_of_the_section_applies_to_every_guided_cell() -> None:
    sections = {"sample": {"guidance_interval": [0.2, 5]}, "sweep": {**GRID, "guidance": [0, 2]}}
    config = parse(params(**sections), "test")
    for cell in grid(config.sample, config.sweep):
        settings = cell_settings(config.sample, cell)
        assert settings.guidance_interval == ((0.2, 5) if cell.guidance else None)
        card = settings_card(settings)
        assert card.get("guidance_interval") == ("0.2:5" if cell.guidance else None)
        assert ("nfe" in card) == (cell.guidance == 0)  # otherwise the NFE depends on the process
        known = {key: card[key] for key in SampleSettings.model_fields if key in card}
        assert SampleSettings(**known) == settings


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_interval_round_trips_through_the_card(low: float, high: float) -> None:
    low, high = sorted((low, high))
    if low == high:
        with pytest.raises(ValidationError, match="the low end must be below the high one"):
            SampleSettings(guidance=1.0, guidance_interval=(low, high))
        return
    settings = SampleSettings(guidance=1.0, guidance_interval=(low, high))
    text = settings_card(settings)["guidance_interval"]
    assert SampleSettings(guidance=1.0, guidance_interval=text) == settings
    assert format_option("guidance_interval", settings.guidance_interval) == text
    assert settings_axes(settings)["guidance_interval"] == text


def test_cells_of_the_default_ema_are_those_without_the_axis() -> None:
    config = parse(params(train=EMA_PROFILES, sweep={**GRID, "ema": ["decay", 0.05, 0.2]}), "test")
    cells = grid(config.sample, config.sweep)
    plain = grid(config.sample, config.sweep.model_copy(update={"ema": None}))
    assert [cell for cell in cells if cell.ema is None] == plain
    assert len(cells) == 3 * len(plain)
    assert config.sweep.sigma_rels == (0.05, 0.2)
    assert parse(params(sweep={**GRID, "ema": ["decay"]}), "test").sweep.sigma_rels == ()  # and no snapshots
    settings = {cell: cell_settings(config.sample, cell) for cell in cells}
    for cell in cells:
        assert settings[cell] == settings[cell.model_copy(update={"ema": None})]


@pytest.mark.parametrize(("guides", "message"), [(["a/" * 150], "shorter path"), (["a/b", "a_b"], "rename")])
def test_too_long_or_equal_names_of_cells_are_refused(guides: list[str], message: str) -> None:
    sweep = SweepConfig(steps=[5], eta=[0.0], guide=guides)
    with pytest.raises(UsageError, match=message):
        grid(SampleConfig(num_images=2, guidance=1.0), sweep)


def test_rule_without_a_guide_drops_it() -> None:
    settings = SampleSettings(guidance=1.0, guidance_rule="classifier-free", guide="a")
    assert settings == SampleSettings(guidance=1.0)


def test_single_step_requires_eta_0() -> None:
    for steps in ({"steps": 1}, {"timesteps": "99"}):
        with pytest.raises(ValidationError, match="a single step adds no noise: eta must be 0"):
            SampleSettings(eta=100.0, **steps)


@given(st.integers(1, 9999), st.floats(0, 50), st.integers(1, 60))
def test_nearly_equal_cells_have_unique_names_and_descriptions(
    steps: int, value: float, halvings: int
) -> None:
    """The name of a cell is its folder, so a cell with the same name would overwrite it."""
    near = max(math.nextafter(value, math.inf), value * (1 + 0.5**halvings))
    pairs = [(steps, value), (steps, near), (steps + 1, value)]
    cells = [Cell(steps=count, eta=eta) for count, eta in pairs]
    cells += [Cell(steps=steps, eta=0.0, guidance=w) for w in (value, near)]
    assert len({cell.name for cell in cells}) == len(cells)
    assert len({describe_cell(cell.axes) for cell in cells}) == len(cells)


def test_cells_are_ordered_by_steps_then_by_the_other_axes() -> None:
    config = parse(params(sweep={**GRID, "sampler": BOTH, "noise": ["small", "large"]}), "test")
    cells = grid(config.sample, config.sweep)
    ordered = sorted((cell.axes for cell in cells), key=cell_order)
    assert [axes["steps"] for axes in ordered] == sorted(cell.steps for cell in cells)
    assert [describe_line(axes) for axes in ordered[:6]] == [
        "η = 0, ddim", "η = 0, dpm-solver++", "η = 0.5, ddim, noise large", "η = 0.5, ddim, noise small",
        "η = 1, ddim, noise large", "η = 1, ddim, noise small",
    ]  # fmt: skip


def interval(ends: Any, axis: Any = None, w: float = 1) -> dict[str, Any]:
    sample = {"guidance": w, "guidance_interval": ends}
    return {"sample": sample, "sweep": {"guidance_interval": axis}}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"sample": {"sampler": "dpm-solver++"}}, "sample.sampler dpm-solver.* so sweep.eta must be"),
        ({"sweep": {"sampler": ["dpm-solver++"]}}, "sweep.sampler dpm-solver.* so sweep.eta must be"),
        ({"sweep": {"eta": [0], "noise": ["large"]}}, "sweep.noise has no effect at eta 0"),
        ({"sweep": {"eta": [0, 0.0]}}, "sweep.eta: each value may occur once"),
        ({"sweep": {"guidance": [2]}, "train": {"p_uncond": 0}}, "sweep.guidance > 0 needs a model trained"),
        ({"sweep": {"sampler": ["rk4"]}}, "sweep.sampler.0: allowed are ddim, euler.* .got 'rk4'"),
        ({"sample": {"sampler_options": {"churn": 1}}}, "of ddim: churn: unknown key, there are none"),
        ({"process": {"variance": "small", "loss": "simple"}, "sweep": {"noise": ["learned"]}},
         "sweep.noise learned needs process.variance learned"),
        *[
            ({"train": EMA_PROFILES, "sweep": {"ema": ema}}, r"sweep\.ema")
            for ema in ([0.005], [0.3], [True], [], [0.1, 0.1], "0.1")
        ],
        ({"sweep": {"ema": ["decay", 0.2]}}, "sweep.ema: 0.2 is made from snapshots.*set train.ema_profiles"),
        (interval([5, 0.2]), "the low end must be below the high one"),
        (interval([math.nan, 5]), "guidance_interval.0: .*finite"),
        (interval("1"), "an interval is LOW:HIGH, such as 0.2:5"),
        (interval(None, [[0, 1], [0.0, 1.0]]), "sweep.guidance_interval: each value may occur once"),
        (interval([0.2, 5], w=0), "sample.guidance_interval has no effect without guidance"),
        (interval(None, [[0.2, 5]], w=0), "sweep.guidance_interval has no effect .*: change sample.guidance"),
        (interval([0, 1], [[0.2, 5]]), "leave sample.guidance_interval out"),
    ],
)  # fmt: skip
def test_impossible_sections_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        parse(params(**sections), "params.yaml")
    assert "\n" not in str(refusal.value)


def test_cell_names_are_portable_and_unique_without_case() -> None:
    axes = {"sampler": tuple(SAMPLERS), "noise": (None, *get_args(Noise)), "spacing": (None, *SPACINGS)}
    axes["guidance_interval"] = (None, "0.2:5", "1e-300:1e+300")
    cells = [
        Cell(steps=steps, eta=eta, guidance=guidance, **dict(zip(axes, values, strict=True)))
        for steps, eta, guidance in product((1, 10**4), (0.0, 1e-300, 0.1 + 0.2), (None, 1e-300))
        for values in product(*axes.values())
    ]
    names = [cell.name for cell in cells]
    assert len({name.casefold() for name in names}) == len(names)
    assert all(re.fullmatch(r"[\w+-][\w.+-]*[\w+-]", name, re.ASCII) and len(name) < 200 for name in names)
