"""All scores of a sample: equal to torch-fidelity, finite for degenerate images, independent of caching."""

import warnings

import numpy as np
import pytest
import torch

from diffusion.evaluate.adhoc import open_inputs, score_images
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extractors import Features, extract
from diffusion.evaluate.features.reference_features import Reference
from diffusion.evaluate.scores.frechet import Target
from diffusion.evaluate.scores.frechet_scores import PublishedStatistics, floor_at, limit_and_errors
from diffusion.evaluate.scores.moments import Statistics
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.evaluate.sweep_scores import score
from diffusion.images.store import ImageStore, write_store
from diffusion.protocol.card import SHARES, subset_size
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.system.errors import DiffctlError
from tests.helpers.digits_sweep import effnet, normal, real_digits

META = {"extractor": "effnet-lite0-64", "reference_split": "train", "heldout_split": "test"}
FD, KD = "fd_effnet_lite0_64", "kd_effnet_lite0_64"


def made_up(count, seed=0, dimension=16):
    return Features(normal(seed, count, dimension), normal(seed + 100, count, 4))


def scorer(heldout, real_count=200):
    return Scorer(Reference(META, normal(0, real_count), heldout), EvaluateConfig())


@pytest.mark.parametrize("count", [2, 3, 7, 50])
def test_few_images_have_finite_scores(count):
    scores, errors = scorer(made_up(40, seed=1)).scored(made_up(count, seed=2))
    assert all(np.isfinite(value) for value in scores.values())
    assert {"floor", "excess", "memorisation"} <= scores.keys()
    assert bool(errors) == any(name.endswith("_low") for name in scores) == (count > 2)


def test_enlarged_test_images_have_no_score_of_copies(tmp_path):
    meta = {**META, "name": "digits", "image_size": 8, "reference_count": 200, "weights_sha256": "w" * 64}
    reference = Reference(meta, normal(0, 200), made_up(40, seed=1))
    one = Scorer(reference, EvaluateConfig(feature_likelihood=True))
    scores, enlarged = (
        score(made_up(30, seed=2), ImageStore(tmp_path, None, None, {"card": card}), one)["scores"]
        for card in ({}, {"real_sha256": "c" * 64})
    )
    assert scores.keys() - enlarged.keys() == {"memorisation", "memorisation_std", "fld_effnet_lite0_64"}


def allowed():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture
def tf32(monkeypatch):
    """Allow TF32, as training does; yield what is allowed at each matrix product."""
    before, seen, cdist = allowed(), [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda *arguments: seen.append(allowed()) or cdist(*arguments))
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield seen
    assert allowed() == ("high", True)
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_extraction_and_scoring_disable_tf32_and_restore_it(tf32):
    extractor = effnet()
    extractor.module.register_forward_pre_hook(lambda *_: tf32.append(allowed()))
    extract(extractor, real_digits()[0][:4])
    scorer_of_real = scorer(made_up(40, seed=1))
    scorer_of_real.scores(made_up(30, seed=2))
    scorer_of_real.real(30)
    assert set(tf32) == {("highest", False)}
    assert len(tf32) > 5
    with pytest.raises(ValueError, match="broadcast"):
        scorer_of_real.scores(made_up(30, dimension=3))


def test_real_images_score_like_a_sample_and_caching_changes_no_score():
    scorer_of_real, heldout = scorer(made_up(40, seed=1)), made_up(40, seed=1)
    real, same = scorer_of_real.real(40), scorer_of_real.scores(heldout)
    assert real["precision_effnet_lite0_64"] == same["precision_effnet_lite0_64"]
    assert real[FD] == scorer_of_real.floor(40)
    assert same == scorer(heldout).scores(heldout)


@pytest.mark.parametrize(("prc_samples", "has_shares"), [(None, False), (150, True)])
def test_real_images_have_no_score_that_is_worse_for_being_of_fewer_images(prc_samples, has_shares):
    """Otherwise samples of the real distribution itself look better than held-out real images."""
    spec, section = EXTRACTORS["effnet-lite0-64"], EvaluateConfig(prc_samples=prc_samples)
    published = PublishedStatistics(spec, Statistics(np.zeros(16), np.eye(16)), np.eye(16), {})
    reference = Reference(META, normal(0, 1000), made_up(200, seed=1))
    scorer_of_few = Scorer(reference, section, published=published)
    real, few = scorer_of_few.real(1000), scorer_of_few.real(200)
    shares = {spec.named(share) for share in SHARES}
    assert few.keys() - real.keys() == {spec.limit, *(() if has_shares else shares)}
    assert all(real[name] < 0.6 * few[name] for name in (spec.distance, spec.published))


class Images(list, torch.utils.data.Dataset):
    """Tensors (3, H, W) as torch-fidelity expects them."""


@pytest.mark.slow
def test_scores_equal_torch_fidelity(tmp_path):
    from torch_fidelity import calculate_metrics

    from tests.helpers.torch_fidelity_adapter import register

    images, _ = real_digits()
    ours, real = images[:100], images[100:250]
    np.savez(tmp_path / "ours.npz", ours)
    write_store(tmp_path / "real", real, None, {"name": "real"})
    tensors = [torch.from_numpy(part.transpose(0, 3, 1, 2).repeat(3, axis=1)) for part in (ours, real)]
    got = score_images(open_inputs(tmp_path / "ours.npz", tmp_path / "real"), EvaluateConfig())["scores"]
    want = calculate_metrics(
        **dict(zip(("input1", "input2"), map(Images, tensors), strict=True)),
        **dict.fromkeys(("fid", "kid", "isc", "prc", "save_cpu_ram"), True),
        **dict.fromkeys(("cuda", "cache", "verbose"), False),
        feature_extractor=register("effnet-lite0-64"),
        kid_subset_size=subset_size(len(ours), len(real)),
    )
    same = {
        FD: "frechet_inception_distance",
        KD: "kernel_inception_distance_mean",
        f"{KD}_std": "kernel_inception_distance_std",
        "is_effnet_lite0_64": "inception_score_mean",
        "is_effnet_lite0_64_std": "inception_score_std",
        "precision_effnet_lite0_64": "precision",
        "recall_effnet_lite0_64": "recall",
    }
    for ours_name, theirs in same.items():
        assert got[ours_name] == pytest.approx(want[theirs], rel=1e-5), ours_name


class Blind:
    """An extractor that returns NaN for bright images."""

    batch_size = 4
    spec = EXTRACTORS["inception-v3-spatial"]

    def __call__(self, batch):
        features = torch.ones(len(batch), 8)
        features[batch[:, 0, 0, 0] > 250, 3] = float("nan")
        return features, None


def test_nan_features_are_refused():
    images = np.zeros((10, 4, 4, 1), np.uint8)
    images[6] = 255
    with pytest.raises(DiffctlError, match="inception-v3-spatial"):
        extract(Blind(), images)
    assert len(extract(Blind(), images[:6])) == 6


@pytest.mark.parametrize("count", [15, 16, 40])
def test_equal_images_have_a_closed_form_distance_without_error(count):
    real = normal(0, 300)
    scores = scorer(made_up(100, seed=1), 300).scores(Features(np.ones((count, 16), np.float32)))
    want = ((1 - real.mean(axis=0)) ** 2).sum() + real.var(axis=0, ddof=1).sum()
    assert scores[FD] == pytest.approx(want, rel=1e-5)
    assert np.isfinite(scores[f"{KD}_high"] - scores[f"{KD}_low"])
    assert scores[f"{FD}_high"] - scores[f"{FD}_low"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("ours", "real"), [(1, 1), (2, 1), (1, 2)])
def test_class_with_one_image_has_no_score(ours, real):
    meta, labels = {**META, "classes": ["a", "b"]}, np.array([0] * 30 + [1] * real)
    scorer = Scorer(Reference(meta, normal(0, 30 + real), None, labels), EvaluateConfig())
    found = scorer.classes(made_up(10 + ours), np.array([0] * 10 + [1] * ours), ["a", "b"])
    assert list(found) == ["a"]
    assert found["a"]["num_images"] == 10


@pytest.mark.parametrize("count", [4, 5, 12])
def test_a_class_has_a_floor_of_measured_held_out_images_alone(count):
    """The floors of two classes with 4 and 12 held-out images equal those of the classes alone."""
    names, labels, unseen = ["a", "b"], np.arange(60) % 2, np.array([0] * 4 + [1] * 12)
    reference = Reference({**META, "classes": names}, normal(0, 60), made_up(16, seed=1), labels, unseen)
    samples = np.repeat([0, 1], count)
    found = Scorer(reference, EvaluateConfig()).classes(made_up(2 * count, seed=2), samples, names)
    for label, name in enumerate(names):
        target = Target(reference.features[labels == label])
        heldout = reference.heldout.features[unseen == label]
        if count > len(heldout):
            assert found[name].keys() == {"num_images", FD}
        else:
            assert found[name]["floor"] == pytest.approx(floor_at(count, heldout, target))
            assert found[name]["excess"] == found[name][FD] - found[name]["floor"]


def test_excess_over_an_extrapolated_floor_has_no_interval():
    """An extrapolated floor has no sampling error that could be estimated."""
    sample = made_up(60, seed=2)
    assert "excess_low" not in scorer(made_up(40, seed=1)).scores(sample)
    scores = scorer(made_up(60, seed=1)).scores(sample)
    of_distance, of_excess = (scores[f"{name}_high"] - scores[f"{name}_low"] for name in (FD, "excess"))
    assert of_excess > 1.2 * of_distance  # the floor's own error is of the same size


@pytest.mark.parametrize(
    ("count", "outlier", "warns"), [(300, 1.0, False), (300, 30.0, True), (199, 30.0, False)]
)
def test_heavy_tailed_features_cause_a_warning(count, outlier, warns):
    """One image has a large share of the variance; of fewer than 200 it may have that by chance."""
    sample, target = 100 * normal(1, count, 64), Target(100 * normal(0, 3000, 64))
    sample[0] *= outlier
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        limit_and_errors(sample, target)
    assert any("heavy tails" in str(one.message) for one in caught) == warns
