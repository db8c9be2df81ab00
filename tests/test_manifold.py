import numpy as np
import pytest
import torch

from diffusion.evaluation import neighbours
from diffusion.evaluation.manifold import Manifold, memorisation, precision_recall

CPU = torch.device("cpu")


def normal(seed, count, dimension=8, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(count, dimension)) + shift).astype(np.float32)


def of(features, most=10_000):
    return Manifold(features, most, CPU)


@pytest.mark.parametrize("block", [7, 1024])
def test_it_is_torch_fidelitys_precision_and_recall(monkeypatch, block):
    from torch_fidelity.metric_prc import prc_features_to_metric

    monkeypatch.setattr(neighbours, "BLOCK", block)
    ours, real = normal(0, 60, shift=0.7), normal(1, 90)
    want = prc_features_to_metric(torch.from_numpy(ours), torch.from_numpy(real), verbose=False)
    got = precision_recall(of(ours), of(real))
    assert got.precision == pytest.approx(want["precision"], abs=1e-7)
    assert got.recall == pytest.approx(want["recall"], abs=1e-7)


def test_what_lacks_a_mode_has_precision_without_recall():
    real = np.concatenate([normal(0, 200), normal(1, 200, shift=20)])
    got = precision_recall(of(normal(2, 200)), of(real))
    assert got.precision > 0.8
    assert got.recall < 0.55


def test_what_lies_elsewhere_has_neither():
    assert precision_recall(of(normal(0, 50, shift=50)), of(normal(1, 50))) == (0, 0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_images_than_neighbours_reach_the_farthest(count):
    assert of(normal(0, count)).reach.shape == (count,)


def test_only_so_many_images_are_held():
    assert len(of(normal(0, 50), most=20)) == 20
    torch.testing.assert_close(of(normal(0, 50), most=20).points, of(normal(0, 50), most=20).points)


def test_memorisation_of_new_images_is_zero_and_of_copies_one():
    train, test = normal(0, 1500), normal(1, 500)
    chance = len(train) / (len(train) + len(test))
    error = np.sqrt(chance / (1 - chance) / 2000)
    assert abs(memorisation(of(normal(2, 2000)), train, test)) < 3 * error
    assert memorisation(of(train[:800]), train, test) == 1
    assert memorisation(of(test), train, test) == pytest.approx(-chance / (1 - chance))


def test_bad_samples_are_not_taken_for_copies():
    """Whatever their quality, over many splits of the data they are as near to one part as to the other."""
    found = []
    for seed in range(0, 60, 3):
        blurred, train, test = 0.3 * normal(seed, 100), normal(seed + 1, 150), normal(seed + 2, 50)
        found.append(memorisation(of(blurred), train, test))
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(20)


def test_half_copies_are_half_way():
    train, test = normal(0, 1500), normal(1, 500)
    mixed = np.concatenate([train[:1000], normal(2, 1000)])
    assert memorisation(of(mixed), train, test) == pytest.approx(0.5, abs=0.1)
