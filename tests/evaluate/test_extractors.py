"""Extractors: their networks, weights files, downloads and caches; sFID."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from diffusion.code_digest import code_digest
from diffusion.evaluate.adhoc import open_inputs, score_images
from diffusion.evaluate.evaluate_config import EvaluateConfig, Space
from diffusion.evaluate.features.extractors import extract, load_extractor, read_weights, space_extractor
from diffusion.evaluate.features.inception import _network
from diffusion.evaluate.features.reference_features import Reference, extraction_code
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.protocol.extractors import EXTRACTORS, INCEPTION, INCEPTION_SPATIAL, default_extractor
from diffusion.report.formatting import short_names
from diffusion.system.errors import DiffctlError, DiffctlWarning, TemporaryError
from diffusion.system.files import sha256_file
from tests.helpers.digits_sweep import real_digits
from tests.helpers.file_server import serving
from tests.helpers.raw_data import random_images


def test_default_extractor_depends_on_the_image_size():
    assert default_extractor((64, 32)) == default_extractor((32, 64)) != default_extractor((32, 65))


def test_effnet_equals_the_packages_network(extractor):
    """Batch norms are folded, and padding is fixed for 64 pixels."""
    plain = EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    plain.load_state_dict(torch.load(read_weights(extractor.spec), map_location="cpu", weights_only=True))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = plain(x)
        features = extractor.module.network.extract_features(x).mean(dim=(2, 3))
        got = extractor.module.network._fc(features)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in extractor.module.modules())


def test_an_extractor_squeezes_images_to_a_square(extractor):
    """So the width has no effect on images of constant rows, and a crop of the middle would not do."""
    rows = torch.from_numpy(random_images(0, 4, 8, 3)[:, :, :1]).permute(0, 3, 1, 2)
    narrow, wide = (extractor(rows.expand(-1, -1, -1, width).contiguous())[0] for width in (8, 16))
    assert torch.allclose(narrow, wide, atol=1e-4)
    ramp = torch.arange(0, 256, 16, dtype=torch.uint8).expand(2, 3, 8, 16)
    assert not torch.allclose(extractor(ramp)[0], extractor(ramp[..., 4:12])[0], atol=1e-2)


def test_extraction_code_contains_only_the_chosen_extractor():
    codes = [extraction_code(spec) for spec in EXTRACTORS.values()]
    assert len(set(map(code_digest, codes))) == len(codes)
    ours, theirs = (
        {name for name in extraction_code(spec) if " " not in name}
        for spec in (EXTRACTORS["effnet-lite0-64"], INCEPTION)
    )
    assert ours ^ theirs == {"diffusion.evaluate.features.effnet", "diffusion.evaluate.features.inception"}


@pytest.mark.parametrize("size", [1, 7])
def test_features_are_independent_of_the_batch_size(extractor, size):
    images = real_digits()[0][:40]
    one, other = (extract(extractor, images, batch_size) for batch_size in (40, size))
    np.testing.assert_allclose(other.features, one.features, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(other.logits, one.logits, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_inception_loads_from_a_path_with_the_right_hash(random_inception):
    path, sha256 = random_inception
    extractor = load_extractor("inception-v3-compat", path, sha256=sha256)
    features, logits = extractor(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    assert (features.shape, logits.shape) == ((2, 2048), (2, 1008))
    assert extractor.weights_sha256 == sha256
    with pytest.raises(DiffctlError, match="does not hold the weights of inception-v3-compat"):
        load_extractor("inception-v3-compat", path)


@pytest.fixture
def changed_inception(random_inception, tmp_path):
    """Return a function that stores the random weights with other tensors, None for a missing one."""

    def change(**tensors):
        state = {
            **torch.load(random_inception[0]),
            **{key.replace("__", "."): t for key, t in tensors.items()},
        }
        path = tmp_path / "changed.pth"
        torch.save({name: part for name, part in state.items() if part is not None}, path)
        return {"weights": path, "weights_sha256": sha256_file(path), "extractor": INCEPTION.name}

    return change


@pytest.mark.slow
def test_inception_without_class_layer_gives_all_scores_but_the_inception_score(
    random_inception, changed_inception, tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFCTL_CACHE", str(tmp_path / "cache"))
    images = real_digits()[0][:4]
    np.savez(tmp_path / "a.npz", arr_0=images[:2])
    np.savez(tmp_path / "b.npz", arr_0=images[2:])
    pair = open_inputs(tmp_path / "a.npz", tmp_path / "b.npz")
    whole = {"weights": random_inception[0], "weights_sha256": random_inception[1]}
    expected = score_images(pair, EvaluateConfig(extractor=INCEPTION.name, **whole))["scores"]
    section = EvaluateConfig(
        **changed_inception(fc__weight=torch.full((1008, 2048), torch.nan), fc__bias=None)
    )
    for _ in ("extracted", "from the cache"):
        with pytest.warns(DiffctlWarning, match="no class layer: the Inception score is left out"):
            scores = score_images(pair, section)["scores"]
        assert scores == {name: value for name, value in expected.items() if name not in ("is", "is_std")}


@pytest.mark.slow
def test_damaged_weights_are_refused_when_they_are_loaded(changed_inception):
    name = "Mixed_6b.branch1x1.conv.weight"
    with pytest.raises(DiffctlError, match=rf"damaged: {name} has NaN"):
        space_extractor(Space(**changed_inception(**{name: torch.full((192, 768, 1, 1), torch.nan)})))


@pytest.mark.slow
def test_folded_inception_equals_torch_fidelitys_network(random_inception):
    path, sha256 = random_inception
    plain = FeatureExtractorInceptionV3("plain", ["2048", "logits_unbiased"], str(path))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for ours, theirs in zip(
        load_extractor(INCEPTION.name, path, sha256=sha256)(images), plain(images), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("save", "values", "message"),
    [
        (torch.save, {"fc.weight": torch.zeros(2, 2)}, "do not fit"),
        (torch.save, {"fc.weight": Malicious()}, "more or less than tensors"),
        (pickle.dump, Malicious(), "more or less than tensors"),
    ],
)
def test_weights_of_another_shape_are_refused_and_pickled_code_is_never_run(tmp_path, save, values, message):
    path = tmp_path / "other.pth"
    with open(path, "wb") as file:
        save(values, file)
    with pytest.raises(DiffctlError, match=message):
        load_extractor("inception-v3-compat", path, sha256=sha256_file(path))


@pytest.mark.slow
@pytest.mark.parametrize("fits", [True, False])
def test_only_the_right_download_is_kept(tmp_path, monkeypatch, random_inception, fits):
    path, sha256 = random_inception
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with serving({"weights.pth": path.read_bytes() if fits else b"not weights"}) as server:
        weights = dataclasses.replace(INCEPTION.weights, url=server.url("weights.pth"))
        spec = dataclasses.replace(INCEPTION, weights=weights)
        if fits:
            assert read_weights(spec, sha256=sha256).getbuffer() == path.read_bytes()
        else:
            with pytest.raises(DiffctlError, match="serves another file"):
                read_weights(spec, sha256=sha256)
    if fits:  # without the server, from torch's hub cache
        assert read_weights(spec, sha256=sha256).getbuffer() == path.read_bytes()
    assert len([*(tmp_path / "torch").rglob("*.pth")]) == fits


def test_download_without_network_is_a_temporary_error_in_plain_words(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with serving({}) as server:
        url = server.url("weights.pth")
    spec = dataclasses.replace(INCEPTION, weights=dataclasses.replace(INCEPTION.weights, url=url))
    with pytest.raises(
        TemporaryError, match=r"\(127\.0\.0\.1:\d+: no connection\): try again later"
    ) as failed:
        read_weights(spec)
    assert "`diffctl weights inception FILE`" in str(failed.value)


@pytest.fixture(scope="module")
def spatial(random_inception):
    """Return sFID's extractor."""
    return load_extractor(INCEPTION_SPATIAL.name, random_inception[0], sha256=random_inception[1])


@pytest.mark.slow
def test_spatial_features_equal_the_map_of_the_full_network(random_inception, spatial):
    """`mixed_6/conv:0` is NHWC after ReLU; OpenAI's evaluator takes [..., :7]."""
    images = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    whole, seen = _network(INCEPTION, ["2048"], torch.load(random_inception[0])), []
    whole.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, made: seen.append(made.clone()))
    with torch.inference_mode():
        whole(images)
    features, logits = spatial(images)
    want = seen[0].numpy().transpose(0, 2, 3, 1)[..., :7].reshape(3, INCEPTION_SPATIAL.features)
    np.testing.assert_allclose(features.numpy(), want, rtol=1e-5, atol=1e-6)
    assert features.std() > 0
    assert logits is None


@pytest.mark.slow
def test_sfid_equals_the_closed_form(spatial):
    """‖μ_a − μ_b‖² + tr Σ_a + tr Σ_b − 2 ‖A Bᵀ‖_* of the centred and scaled features: no root of a matrix."""
    images, meta = real_digits()[0], {"extractor": INCEPTION_SPATIAL.name, "reference_split": "train"}
    sets = [extract(spatial, images[rows]) for rows in (slice(20, 40), slice(0, 20))]
    scores = Scorer(Reference(meta, sets[1].features, None), EvaluateConfig()).scores(sets[0])
    a, b = (one.features.astype(np.float64) for one in sets)
    root = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum((x**2).sum() for x in root)
    want -= 2 * np.linalg.norm(root[0] @ root[1].T, "nuc")
    assert scores["sfid"] == pytest.approx(want, rel=1e-4)
    assert not {"fid", "kid", "is"} & scores.keys()
    assert short_names(INCEPTION_SPATIAL)["distance"] == "sFID"


@pytest.mark.slow
def test_weights_may_be_safetensors(random_inception, spatial, tmp_path):
    path = tmp_path / "inception.safetensors"
    save_file(torch.load(random_inception[0], weights_only=True), path)
    sha256 = sha256_file(path)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    again = load_extractor(INCEPTION_SPATIAL.name, path, sha256=sha256)
    assert torch.equal(again(images)[0], spatial(images)[0])
