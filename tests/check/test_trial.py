"""The trial of `diffctl check`: plugins that would fail, or train wrongly, hours later."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion.check import trial
from diffusion.check.findings import Project
from diffusion.check.timing import time_sampling
from diffusion.check.trial import check_trial
from diffusion.config import parse
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.system.section import Section
from diffusion.train.plan import DenoiserPlan
from tests.conftest import params, run_python

PLUGINS = {
    "__init__": """
from diffusion.model.network_registry import MODELS, ModelEntry
from diffusion.process.loss_registry import OBJECTIVES, ObjectiveEntry
from diffusion.process.process_registry import PROCESSES, ProcessEntry
from diffusion.protocol.samplers import SAMPLERS, SamplerEntry
from diffusion.train.optimizers.optimizer_registry import OPTIMIZERS, OptimizerEntry
CLASSES = {"config": "plugins.model.half:Config", "spec": "plugins.model.half:Spec"}
MODELS["half"] = ModelEntry("plugins.model.half:Half", **CLASSES)
OWN = {"config": "plugins.model.random:Config", "spec": "plugins.model.random:Spec"}
MODELS["random"] = ModelEntry("plugins.model.random:Random", **OWN)
PROCESSES["falling"] = ProcessEntry("plugins.process.falling:Falling")
OBJECTIVES["mean"] = ObjectiveEntry("plugins.process.mean:Mean", "a test")
OPTIMIZERS["counting"] = OptimizerEntry("plugins.train.counting:build", "a test")
OPTIMIZERS["adaptive"] = OptimizerEntry("plugins.train.adaptive:build", "a test")
SAMPLERS["late"] = SamplerEntry("plugins.sample.late:build")
""",
    "model/half": """from torch import nn
from diffusion.model.network_registry import ModelConfig, NetworkSpec
class Config(ModelConfig): pass
class Spec(Config, NetworkSpec): pass
class Half(nn.Conv2d):
    def __init__(self, spec): super().__init__(spec.in_channels, spec.out_channels, 2, 2)
    def forward(self, x, t, labels): return super().forward(x)
""",
    "process/falling": """from diffusion.process.discrete import DiscreteProcess
class Falling(DiscreteProcess):
    def alpha_sigma(self, t):
        angle = 0.8 + 0.7 * (t.double() / 50).cos()
        return angle.cos(), angle.sin()
""",
    "process/mean": """from diffusion.process.losses import Simple
class Mean(Simple):
    def forward(self, network, batch, step):
        return {"loss": super().forward(network, batch, step)["loss"].mean()}
""",
    "train/counting": """import torch
class Counting(torch.optim.SGD):
    def step(self, closure=None):
        for weight in self.param_groups[0]["params"]:
            self.state[weight]["count"] = 1
def build(groups, network, options): return Counting(groups, 0.1)
""",
    "train/adaptive": """import torch
class Adaptive(torch.optim.SGD):
    def step(self, closure=None): self.param_groups[0]["d"] = 2.0
def build(groups, network, options): return Adaptive(groups, 0.1)
""",
    "model/random": """from torch import nn
from diffusion.model.network_registry import ModelConfig, NetworkSpec
class Config(ModelConfig): pass
class Spec(Config, NetworkSpec): pass
class Random(nn.Conv2d):
    def __init__(self, spec): super().__init__(spec.in_channels, spec.out_channels, 3, padding=1)
    def forward(self, x, t, labels): return nn.functional.dropout(super().forward(x), 0.5, self.training)
""",
    "sample/late": """from diffusion.sample.sampler import DenoiserCall, Step
def build(settings): return run
def run(grid, x, noise):
    for done, step in enumerate(grid.reverse_steps()):
        prediction = yield DenoiserCall(x, step.t)
        x = step.alpha_prev * prediction.x0 + step.sigma_prev * prediction.eps * (1 / (1 - done))
        yield Step(done + 1, len(grid), x, prediction.x0)
""",
}
BROKEN = {
    "plugins/model/half.py, line 7: the network half returns (1, 2, 4, 4), and its output must be (1, 2,": (
        {"model": {"name": "half"}, "train": {"p_uncond": 0.0}}
    ),
    "plugins/process/falling.py, line 3: σ/α of process.schedule falling falls from": (
        {"process": {"schedule": "falling"}}
    ),
    "plugins/process/mean.py, line 3: loss of the objective has the shape (), and it must be (2,): a": (
        {"process": {"loss": "mean", "variance": "small"}}
    ),
    "plugins.train.counting: count in the optimiser's state is of type int, and only tensors are saved": (
        {"train": {"optimizer": "counting"}}
    ),
    "plugins.train.adaptive: a step changes d of a group of parameters, and only its state is saved": (
        {"train": {"optimizer": "adaptive"}}
    ),
    "the network or the objective draws from torch's global generator, as torch.nn.Dropout does": (
        {"model": {"name": "random"}, "train": {"p_uncond": 0.0}}
    ),
    "sampling by 2 steps, late (plugins.sample.late) failed: plugins/sample/late.py, line 6: ZeroDivision": (
        {"sweep": {"steps": [5], "sampler": ["ddim", "late"], "eta": [0.0]}}
    ),
}
FLOW = {"process": {"schedule": "flow", "prediction": "flow"}, "train": {"p_uncond": 0.1}}
SCRIPT = """
import sys
from pathlib import Path
import cli.entry
from cli.main import app
from diffusion.check import preflight
from diffusion.config import load
for text in sys.argv[1:]:
    Path("params.yaml").write_text(text)
    print(app(["check"], standalone_mode=False))
    try:
        preflight(load(), "train")
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_broken_entries_are_named_with_file_and_line(project: Path) -> None:
    """Also before a training: the preflight refuses them."""
    for name, code in PLUGINS.items():
        (project / f"plugins/{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (project / f"plugins/{name}.py").write_text(code)
    texts = [json.dumps(params(**changes)) for changes in BROKEN.values()]
    found = run_python(project, "-c", SCRIPT, *texts)
    assert found.returncode == 0, found.stderr
    errors = [line for line in found.stdout.splitlines() if line.startswith("✗")]
    refused = [line for line in found.stdout.splitlines() if line.startswith("UsageError")]
    assert len(errors) == len(refused) == len(BROKEN)
    for message, *lines in zip(BROKEN, errors, refused, strict=True):
        assert [message in line for line in lines] == [True, True], lines


def test_other_entries_are_tried_without_a_network_that_is_too_large(project, monkeypatch) -> None:
    guided = {"train": {"p_uncond": 0.1}, "sweep": {"steps": [5], "guidance": [0, 1], "eta": [0.0]}}
    config = parse(params(**guided), "params")
    monkeypatch.setattr(trial, "MAX_FLOPS", 0)
    (finding,) = check_trial(Project(config))
    assert finding.level == "ok"
    assert "sampling by 2 settings work; the network is too large to try" in finding.message
    monkeypatch.setattr(trial.StandIn, "forward", lambda self, x, *conditions: x[:, :, 1:])
    assert {finding.level for finding in check_trial(Project(config))} == {"error"}


def test_features_of_a_network_that_is_too_large_are_checked_by_name(monkeypatch) -> None:
    monkeypatch.setattr(trial, "MAX_FLOPS", 0)
    for options, level in (({}, "ok"), ({"module": "nowhere"}, "error")):
        process = {"loss": "dispersive", "variance": "small", "loss_options": options}
        (finding,) = check_trial(Project(parse(params(process=process), "params")))
        assert finding.level == level
        assert level == "ok" or "needs the module 'nowhere'" in finding.message


def test_entries_of_two_registries_with_one_name_are_both_tried(tmp_path: Path) -> None:
    grids = {"format": 1, "model_sha256": "a" * 64, "learned": {}, "levels": {"2": [2.0, 1.0]}}
    (tmp_path / "grids.json").write_text(json.dumps(grids))
    learned = {"spacing_options": {"file": str(tmp_path / "grids.json")}}
    sweep = {"steps": [2], "eta": [1.0], "spacing": ["learned"], "noise": ["small", "learned"]}
    config = parse(params(sample={"spacing": "learned", **learned}, sweep=sweep), "params")
    assert {one.noise for one in trial.distinct_settings(Project(config))} == {"small", "learned"}


@pytest.mark.parametrize(("timesteps", "steps", "tried"), [(50, 5, 2), (51, 17, 17)])
def test_spacing_has_two_steps_or_those_of_its_first_cell(timesteps: int, steps: int, tried: int) -> None:
    changes = {"process": {"timesteps": timesteps}, "sample": {"spacing": "ddim-uniform"}}
    config = parse(params(**changes, sweep={"steps": [steps], "eta": [0.0]}), "params")
    assert [one.steps for one in trial.distinct_settings(Project(config))] == [tried]


@pytest.mark.parametrize(("calls", "tried"), [(0, {"zero_calls": 0}), (3, {})])
def test_options_of_a_guidance_rule_are_tried_if_they_allow_two_steps(calls, tried) -> None:
    sample = {"guidance_rule": "cfg-zero", "guidance_rule_options": {"zero_calls": calls}}
    sweep = {"steps": [5], "eta": [0.0], "guidance": [1]}
    config = parse(params(**FLOW, sample=sample, sweep=sweep), "params")
    found = [(one.steps, one.guidance_rule_options) for one in trial.distinct_settings(Project(config))]
    assert found == [(2, tried)]


class RequiredOptions(Section):
    zero_calls: int


def test_a_required_option_of_a_guidance_rule_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = replace(GUIDANCE_RULES["cfg-zero"], options=f"{__name__}:RequiredOptions")
    monkeypatch.setitem(GUIDANCE_RULES.data, "cfg-zero", rule)
    sample = {"guidance_rule": "cfg-zero", "guidance_rule_options": {"zero_calls": 3}}
    sweep = {"steps": [5], "eta": [0.0], "guidance": [1]}
    project = Project(parse(params(**FLOW, sample=sample, sweep=sweep), "params"))
    assert [one.steps for one in trial.distinct_settings(project)] == [5]
    assert isinstance(project.plan, DenoiserPlan)
    assert time_sampling(project.plan, project.config, 0.01, torch.device("cpu")).median > 0
