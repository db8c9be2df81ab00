"""Objectives with a term of the whole batch: their closed forms, and a training with each."""

import math

import pytest
import torch

from diffusion.process.batch_terms import Contrastive, dispersion
from diffusion.process.noise_process import build_process
from diffusion.process.objective import Batch, TrainedNetwork
from diffusion.process.process_options import ContrastiveOptions
from diffusion.process.process_registry import ProcessConfig
from diffusion.train.initial_state import new_state
from tests.helpers.trainings import CPU, plan_of, run
from tests.helpers.trajectories import randn


@pytest.mark.parametrize("process", [{"schedule": "flow", "prediction": "flow"}, {"prediction": "velocity"}])
def test_the_contrastive_minimum_is_the_target_less_the_other_one(process):
    """The gradient vanishes at (v − λ·v_other)/(1 − λ), the other one of the next image and this t."""
    noise = build_process(ProcessConfig(**process))
    x_0, eps, t = randn(3, 1, 2, 2), randn(3, 1, 2, 2) * 2, torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    times = t if process["prediction"] == "flow" else (t * 1000).long()
    own = noise.target(x_0, times, eps)
    other = noise.target(x_0.roll(1, 0), times, eps.roll(1, 0))
    objective = Contrastive(noise, ContrastiveOptions(weight=0.2))
    for is_minimum, point in ((True, (own - 0.2 * other) / 0.8), (False, own)):
        output = point.clone().requires_grad_()
        batch = Batch(x_0, None, times, torch.ones(3), eps)
        network = TrainedNetwork(lambda x, t, labels, output=output: output, noise)
        objective(network, batch, 0)["loss"].sum().backward()
        assert (float(output.grad.abs().max()) < 1e-12) == is_minimum


def test_dispersion_is_that_of_all_pairs():
    z = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    expected = math.log((3 + 2 + 4 * math.exp(-25 / (2 * 0.5))) / 9)
    assert dispersion(z, 0.5).item() == pytest.approx(expected)
    assert dispersion(z[:1], 0.5).item() == 0


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "name"), [("contrastive", "other"), ("dispersive", "dispersion")])
def test_a_training_has_the_term(store, loss, name):
    process = {"loss": loss, "variance": "small"}
    plain, own = (
        new_state(plan_of(store, process={**process, "loss": one}), CPU) for one in ("simple", loss)
    )
    seen = run(own, store).seen
    run(plain, store)
    assert all(math.isfinite(metrics[name]) for _, metrics in seen if name in metrics)
    assert any(name in metrics for _, metrics in seen)
    network, without = own.network.state_dict(), plain.network.state_dict()
    assert any(not torch.equal(network[key], without[key]) for key in network)
