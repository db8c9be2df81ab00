"""sFID: its features equal a map of torch-fidelity's full network, and its distance a closed form."""

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusion.evaluate.features.extractors import extract, load_extractor
from diffusion.evaluate.features.inception import _network
from diffusion.evaluate.features.reference_features import build_reference
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.images.store import open_store, write_store
from diffusion.protocol.extractors import INCEPTION, INCEPTION_SPATIAL
from diffusion.report.score_tables import short_names
from tests.helpers.digits_sweep import real_digits
from tests.helpers.torch_fidelity_adapter import write_random_inception

NAME = INCEPTION_SPATIAL.name


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a file with random Inception weights, and its SHA-256."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    return path, write_random_inception(path)


@pytest.fixture(scope="module")
def extractor(weights):
    return load_extractor(NAME, weights[0], sha256=weights[1])


def test_features_equal_the_map_of_the_full_network(weights, extractor):
    """`mixed_6/conv:0` is NHWC after ReLU; OpenAI's evaluator takes [..., :7]."""
    images = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    whole, seen = _network(INCEPTION, ["2048"], weights[0].open("rb")), []
    whole.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, made: seen.append(made.clone()))
    with torch.inference_mode():
        whole(images)
    (made,) = seen
    assert made.shape == (3, 192, 17, 17)
    features, logits = extractor(images)
    want = made.numpy().transpose(0, 2, 3, 1)[..., :7].reshape(3, -1)
    np.testing.assert_allclose(features.numpy(), want, rtol=1e-5, atol=1e-6)
    assert features.shape == (3, INCEPTION_SPATIAL.features)
    assert features.std() > 0
    assert logits is None


@pytest.mark.slow
def test_sfid_equals_the_closed_form(extractor, tmp_path):
    images, labels = real_digits()
    for name, rows in (("real", slice(0, 20)), ("sample", slice(20, 40))):
        write_store(tmp_path / name, images[rows], labels[rows], {"name": name, "classes": []})
    reference = build_reference(extractor, open_store(tmp_path / "real"), None)
    scorer = Scorer(reference, True, 1000)
    sample = extract(extractor, open_store(tmp_path / "sample").images)
    scores = scorer.scores(sample)
    a, b = (features.astype(np.float64) for features in (sample.features, reference.features))
    # ‖μ_a − μ_b‖² + tr Σ_a + tr Σ_b − 2 ‖A Bᵀ‖_* of the centred and scaled features: no root of a matrix
    root = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum((x**2).sum() for x in root)
    want -= 2 * np.linalg.norm(root[0] @ root[1].T, "nuc")
    assert scores["sfid"] == pytest.approx(want, rel=1e-4)
    assert not {"fid", "kid", "is"} & scores.keys()
    assert short_names(INCEPTION_SPATIAL)["distance"] == "sFID"


@pytest.mark.slow
@pytest.mark.parametrize("name", [INCEPTION.name, NAME])
def test_weights_may_be_safetensors(weights, tmp_path, name):
    path = tmp_path / "inception.safetensors"
    save_file(torch.load(weights[0], weights_only=True), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    one = load_extractor(name, path, sha256=sha256)(images)
    other = load_extractor(name, weights[0], sha256=weights[1])(images)
    assert torch.equal(one[0], other[0])
