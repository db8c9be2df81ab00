"""The loss by timestep quartile, over windows of steps with unequal numbers of images."""

import pytest
import torch

from diffusion.train.observers import quartile_sums, with_quartile_means


@pytest.mark.parametrize("timesteps", [4, 10, 1000])
def test_every_image_counts_once_in_its_quartile(timesteps: int) -> None:
    index = torch.arange(timesteps)
    sums = quartile_sums(torch.ones(timesteps), index, timesteps)
    counts = [sums[f"loss_q{quartile}.count"].item() for quartile in range(4)]
    assert sum(counts) == timesteps
    assert max(counts) - min(counts) <= 1
    assert quartile_sums(torch.ones(1), torch.tensor([timesteps - 1]), timesteps)["loss_q3.count"] == 1


def test_the_mean_of_a_window_is_over_images_not_steps() -> None:
    first = quartile_sums(torch.tensor([1.0, 2.0, 3.0, 8.0]), torch.tensor([0, 1, 2, 99]), 100)
    second = quartile_sums(torch.tensor([6.0, 4.0]), torch.tensor([24, 60]), 100)
    totals = {name: (first[name] + second[name]).item() / 2 for name in first} | {"loss": 0.5}
    assert with_quartile_means(totals) == {"loss": 0.5, "loss_q0": 3.0, "loss_q2": 4.0, "loss_q3": 8.0}
