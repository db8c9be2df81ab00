"""DINOv2 and CLIP as extractors, at a small width: names, pixels, positions, and a golden output each.

On the same small random weights the features were those of the published DINOv2 code within 2e-6 and of the
CLIP of `transformers` within 1e-7; the golden numbers hold what was compared then.
"""

import dataclasses
import hashlib
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion.evaluate.features import extractors, vit
from diffusion.evaluate.features.extractors import load_extractor
from diffusion.evaluate.features.vit import Vit
from diffusion.protocol.extractors import CLIP, DINOV2, EXTRACTORS
from diffusion.system.errors import DiffctlError, UsageError

WIDTH, DEPTH = 128, 2
SMALL_DINOV2 = dataclasses.replace(DINOV2, features=WIDTH)
SMALL_CLIP = dataclasses.replace(CLIP, features=96)
GOLDEN = {  # the first four features of two images
    "dinov2": [[0.3819, -0.0043, 1.2608, 0.4006], [0.3818, -0.0095, 1.1975, 0.4136]],
    "clip": [[-0.0748, -0.0067, -0.0147, -0.0379], [-0.0773, -0.0060, -0.0095, -0.0397]],
}


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of N(0, 0.3²), each from its own name."""
    made = {}
    for name, shape in shapes.items():
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        made[name] = 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made


MLP = [("mlp.fc1", 4 * WIDTH, WIDTH), ("mlp.fc2", WIDTH, 4 * WIDTH)]


def layer(name: str, out: int, *into: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a layer's weight and bias."""
    return {f"{name}.weight": (out, *into), f"{name}.bias": (out,)}


def published_dinov2() -> dict[str, Tensor]:
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1370, WIDTH), "mask_token": (1, WIDTH)}
    shapes |= layer("patch_embed.proj", WIDTH, 3, 14, 14) | layer("norm", WIDTH)
    attention = [("attn.qkv", 3 * WIDTH, WIDTH), ("attn.proj", WIDTH, WIDTH)]
    for block in (f"blocks.{i}." for i in range(DEPTH)):
        shapes |= {f"{block}{scale}.gamma": (WIDTH,) for scale in ("ls1", "ls2")}
        for name, *size in [("norm1", WIDTH), ("norm2", WIDTH), *attention, *MLP]:
            shapes |= layer(f"{block}{name}", *size)
    return drawn(shapes)


def transformers_clip() -> dict[str, Tensor]:
    tower = "vision_model."
    shapes = {
        f"{tower}embeddings.class_embedding": (WIDTH,),
        f"{tower}embeddings.patch_embedding.weight": (WIDTH, 3, 14, 14),
        f"{tower}embeddings.position_embedding.weight": (577, WIDTH),
        "visual_projection.weight": (SMALL_CLIP.features, WIDTH),
        "text_model.embeddings.token_embedding.weight": (10, 64),
        "logit_scale": (),
    }
    shapes |= layer(f"{tower}pre_layrnorm", WIDTH) | layer(f"{tower}post_layernorm", WIDTH)
    attention = [(f"self_attn.{part}_proj", WIDTH, WIDTH) for part in ("q", "k", "v", "out")]
    for block in (f"{tower}encoder.layers.{i}." for i in range(DEPTH)):
        for name, *size in [("layer_norm1", WIDTH), ("layer_norm2", WIDTH), *attention, *MLP]:
            shapes |= layer(f"{block}{name}", *size)
    return drawn(shapes)


def saved(state: dict[str, Tensor]) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def images(count: int = 2, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def small() -> dict[str, Vit]:
    return {
        "dinov2": vit.build_dinov2(SMALL_DINOV2, saved(published_dinov2())),
        "clip": vit.build_clip(SMALL_CLIP, saved(transformers_clip())),
    }


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_features_equal_golden_numbers(small, name):
    features, logits = small[name](images())
    assert logits is None
    torch.testing.assert_close(features[:, :4], torch.tensor(GOLDEN[name]), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("size", [32, 300, 700])
@pytest.mark.parametrize(
    ("name", "side", "normal", "kind"),
    [("clip", 336, vit.CLIP_NORMAL, np.uint8), ("dinov2", 224, vit.IMAGENET, np.float32)],
)
def test_pixels_equal_pillows_resize(small, size, name, side, normal, kind):
    """In 8 bits as CMMD resizes them; floats per channel, clipped, as Stein et al. with `--clean_resize`."""
    channels = [Image.fromarray(channel.numpy().astype(kind)) for channel in images(1, size)[0]]
    resized = np.stack([np.asarray(one.resize((side, side), Image.Resampling.BICUBIC)) for one in channels])
    mean, std = (np.reshape(values, (3, 1, 1)) for values in normal)
    seen = []
    handle = small[name].network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    small[name](images(1, size))
    handle.remove()
    np.testing.assert_allclose(seen[0][0], (resized.clip(0, 255) / 255 - mean) / std, atol=1e-4)


def test_missing_package_is_refused_before_a_download(monkeypatch, tmp_path):
    monkeypatch.setattr(extractors, "find_spec", lambda name: None)
    monkeypatch.setattr(extractors, "read_weights", lambda *args: pytest.fail("weights were looked for"))
    with pytest.raises(UsageError, match=r"needs timm, .* pip install 'diffctl\[extractors\]'"):
        load_extractor(DINOV2.name)


@pytest.mark.parametrize(("spec", "state"), [(SMALL_DINOV2, "dinov2"), (SMALL_CLIP, "clip")])
def test_missing_or_misshapen_tensor_is_a_clear_error(monkeypatch, tmp_path, spec, state):
    """A shallow network, so that each tensor is tried."""
    monkeypatch.setitem(EXTRACTORS.data, spec.name, spec)
    whole = {"dinov2": published_dinov2, "clip": transformers_clip}[state]()
    shallow = r"(blocks|layers)\.1\."
    whole = {name: tensor for name, tensor in whole.items() if not re.search(shallow, name)}
    unused = {"mask_token", "logit_scale", "text_model.embeddings.token_embedding.weight"}
    assert load_saved(tmp_path, spec.name, whole).spec == spec
    for index, name in enumerate(sorted(whole.keys() - unused)):
        without = {other: tensor for other, tensor in whole.items() if other != name}
        misshapen = torch.zeros((3, 5) if index % 2 else ())
        for damaged in (without, {**whole, name: misshapen}):
            with pytest.raises(DiffctlError, match=f"^the weights do not fit {spec.name}: .*$"):
                load_saved(tmp_path, spec.name, damaged)


def load_saved(folder, name, state):
    """Load the extractor from a file with these weights and their own SHA-256."""
    path = folder / "weights.pth"
    torch.save(state, path)
    return load_extractor(name, path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
