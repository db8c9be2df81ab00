"""The target is the velocity along the arc; times and weights have their closed forms."""

import torch

from diffusion.process.process_registry import ProcessConfig, build_process
from plugins.process.early import Early

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


def test_median_is_a_quarter_of_the_range() -> None:
    process = build_process(ProcessConfig(schedule="arc", end=1.5))
    assert torch.allclose(Early(process).times(torch.tensor([0.5])), torch.tensor(1e-3 + 1.499 / 4))


def test_weight_of_the_noise_is_a_sigmoid() -> None:
    values = {"prediction": "eps", "weighting": "sigmoid", "weighting_options": {"shift": 1.0}}
    process = build_process(ProcessConfig(schedule="arc", **values))
    assert torch.allclose(process.loss_weight(TIMES), torch.sigmoid(1 - 2 * process.log_snr(TIMES)))
