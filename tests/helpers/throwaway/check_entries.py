"""The added entries of process, training and sampling, the data and the network: closed forms."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.images.store import ImageStore
from diffusion.model.network_registry import build_network
from diffusion.process.denoiser import Condition, Prediction
from diffusion.process.noise_process import build_process
from diffusion.process.objective import Batch, TrainedNetwork, build_objective
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import SPACINGS
from diffusion.sample.guidance import guided
from diffusion.system.section import NoOptions
from diffusion.train.initial_state import new_state
from diffusion.train.optimizers.lr_schedule import learning_rate
from plugins.model.tiny import TinySpec
from plugins.process.log_uniform import LogUniform
from plugins.train.exponential import ExponentialLR
from plugins.train.lion import Lion
from tests.helpers.raw_data import prepared
from tests.helpers.trainings import CPU, Killed, assert_same, plan_of, run, run_in

TIMES = torch.tensor([0.1, 0.8, 1.5], dtype=torch.float64)


def test_target_is_the_velocity_and_determines_image_and_noise() -> None:
    process = build_process(ProcessConfig(schedule="arc", end=1.5, prediction="velocity"))
    x_0, noise = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    t = TIMES.clone().requires_grad_()
    alpha, sigma = process.alpha_sigma(t)
    (alpha * x_0[:, 0, 0, 0] + sigma * noise[:, 0, 0, 0]).sum().backward()
    target = process.target(x_0, TIMES, noise)
    assert torch.allclose(target[:, 0, 0, 0], t.grad)
    found = process.read(target, process.q_sample(x_0, TIMES, noise), TIMES)
    assert torch.allclose(found.x0, x_0)
    assert torch.allclose(found.eps, noise)


def test_prediction_has_variance_one_and_determines_image_and_noise() -> None:
    process = build_process(ProcessConfig(schedule="flow", prediction="unit-velocity"))
    t = torch.full((2,), 0.3, dtype=torch.float64)
    x_0, noise = torch.randn(2, 2, 1, 100, 100, dtype=torch.float64)
    target = process.target(x_0, t, noise)
    assert target.var().item() == pytest.approx(1, abs=0.05)
    found = process.read(target, process.q_sample(x_0, t, noise), t)
    assert torch.allclose(found.x0, x_0)
    assert torch.allclose(found.eps, noise)


def test_median_of_the_noise_levels_is_their_geometric_mean() -> None:
    process = build_process(ProcessConfig(schedule="arc"))
    times = LogUniform(process).times(torch.tensor([0.5], dtype=torch.float64))
    assert process.noise_level(times).item() == pytest.approx((0.01 * 100) ** 0.5)


def test_roots_of_the_betas_are_even() -> None:
    process = build_process(ProcessConfig(schedule="scaled-linear", timesteps=1000))
    alphas_cumprod = process.grid(range(1000)).alpha.square().numpy()
    roots = np.sqrt(1 - alphas_cumprod / np.append(1, alphas_cumprod[:-1]))
    assert roots == pytest.approx(np.linspace(0.00085**0.5, 0.012**0.5, 1000))
    assert set(LogUniform(process).times(torch.tensor([0.0, 0.999])).tolist()) == {0, 999}


def test_weight_of_the_noise_is_a_sigmoid() -> None:
    values = {"prediction": "eps", "weighting": "sigmoid", "weighting_options": {"shift": 1.0}}
    process = build_process(ProcessConfig(schedule="arc", **values))
    assert torch.allclose(process.loss_weight(TIMES), torch.sigmoid(1 - 2 * process.log_snr(TIMES)))


def test_learned_variance_is_the_error_of_each_noise_level() -> None:
    """E/e^u + u is least at u = log E."""
    options = {"loss": "uncertainty", "loss_options": {"waves": 32}, "prediction": "velocity"}
    process = build_process(ProcessConfig(schedule="arc", **options))
    torch.manual_seed(0)
    objective = build_objective(process)
    t = torch.linspace(0.05, 1.5, 20, dtype=torch.float64)
    size = (0.5 + t)[:, None, None, None]
    x_0, noise = torch.zeros(20, 1, 2, 2), torch.ones(20, 1, 2, 2)
    wrong = (process.target(x_0, t, noise) + size).float()
    network, batch = TrainedNetwork(lambda x, t, labels: wrong, process), Batch(x_0, None, t, t, noise)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        objective(network, batch, 0)["loss"].mean().backward()
        optimizer.step()
    assert torch.allclose(objective.log_variance(t), 2 * size.flatten().float().log(), atol=0.1)


def test_optimiser_and_schedule_take_steps_of_the_rate() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    group = {"params": [weight], "lr": 0.1, "weight_decay": 0.5}
    lion = Lion([group], 0.9, 0.99)
    for gradient in ([5.0, -0.1], [-0.1, 0.0]):  # the momentum keeps the signs
        weight.grad = torch.tensor(gradient)
        lion.step()
    expected = torch.tensor([1.0, -2.0])
    for _ in range(2):
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * torch.tensor([1, -1])
    assert torch.allclose(weight, expected)
    schedule = ExponentialLR(rate=0.1, end=0.001)
    assert [learning_rate(schedule, step, 4) for step in (0, 2)] == pytest.approx([0.1, 0.01])


def test_killed_training_with_the_objectives_parameters_resumes_bitwise(
    store: ImageStore, tmp_path: Path
) -> None:
    plan = plan_of(
        store,
        process={"variance": "small", "loss": "uncertainty"},
        train={"save_every": 3, "optimizer": "lion"},
    )
    whole = new_state(plan, CPU)
    run(whole, store)
    run_in(store, plan, tmp_path, stop_at=5, error=Killed())
    _, resumed, begun = run_in(store, plan, tmp_path)
    assert begun == 3
    assert_same(resumed, whole)
    assert whole.tensors()["objective.amplitudes"].abs().min() > 0


def test_times_are_cubes_of_even_numbers() -> None:
    assert SPACINGS["cubic"].between(5, 0, 64, NoOptions()) == [0, 1, 8, 27, 64]


def test_guidance_sharpens_what_blurring_changes() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[..., 2, 2] = 9.0
    settings = SampleSettings(guidance=0.5, guidance_rule="blurred")
    denoiser = guided(lambda x, t, condition: Prediction(x, x), settings, build_process(ProcessConfig()))
    assert denoiser(x, 0, Condition(1)).x0[0, 0, 2, 2].item() == pytest.approx(9 + 0.5 * (9 - 1))
    assert torch.equal(denoiser(x * 0 + 3, 0, Condition(1)).x0, x * 0 + 3)


def test_thick_rings_are_brighter_and_all_rings_differ(tmp_path: Path) -> None:
    train, test = prepared(tmp_path, name="rings", count=200)
    assert (len(train), len(test)) == (180, 20)
    assert train.meta["counts"] == [90, 90]
    images = np.concatenate([train.images, test.images])
    assert len({image.tobytes() for image in images}) == 200
    light = train.images.mean(axis=(1, 2, 3))
    assert light[train.labels == 1].mean() > 1.5 * light[train.labels == 0].mean()


def test_each_row_depends_on_its_own_image_time_and_label() -> None:
    shape = {"image_size": 8, "in_channels": 1, "out_channels": 2, "num_classes": 3, "null_class": True}
    network = build_network(TinySpec(name="tiny", width=6, **shape))
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([3, 500]), torch.tensor([0, 3])
    output = network(x, t, labels)
    assert output.shape == (2, 2, 8, 8)
    for changed in ((x + 1, t, labels), (x, t + 9, labels), (x, t, labels - labels)):
        rows = (network(*changed) != output).flatten(1).any(1)
        assert rows.tolist() == ([True, True] if changed[2] is labels else [False, True])
