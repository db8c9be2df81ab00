"""Which distortions a feature space sees: `python -m benchmarks.distortions NAME [SIZE…] [--images N]`.

NAME is `digits`, the folder of Fashion-MNIST's files, or a folder of images with a subfolder for each class,
shrunk to 32 pixels (NAME:64 to 64). Real images are distorted in graded strengths and scored against other
real ones by EfficientNet-Lite0 at several input sizes. docs/evaluation.md explains the default size by it.

A silhouette has the right shape and background and no detail. `equal noise` is the standard deviation of
Gaussian noise, in grey levels, that scores like silhouettes: far beyond 64 a size prefers noise to shapes.
"""

import argparse
import dataclasses
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_fill_holes, gaussian_filter

from diffusion.evaluate.features.effnet import EfficientNetLite0
from diffusion.evaluate.features.extractor_weights import read_weights
from diffusion.evaluate.features.extractors import Extractor, FeatureArray, extract
from diffusion.evaluate.scores import kernel_distance
from diffusion.evaluate.scores.frechet import ProjectedSample, Target
from diffusion.images.store import Images, Labels
from diffusion.protocol.extractors import EXTRACTORS

SIZES = (64, 96, 224)
REAL = 1000  # reference images
NOISE = (8, 16, 32, 64, 128)
BLUR = (0.5, 1, 2)  # of 32 pixels
COLOUR = (16, 32, 64)
SPECKLES = (0.03, 0.1, 0.3)
MISSING = (0.25, 0.5)

Distorted = dict[str, Images]


def load(name: str) -> tuple[Images, Labels]:
    """Return shuffled uint8 images (N, H, W, C) and their classes."""
    if name == "digits":
        from sklearn.datasets import load_digits

        found = load_digits()
        images, labels = (found.images[..., None] * 15.9375).round().astype(np.uint8), found.target
    elif (Path(name) / "t10k-images-idx3-ubyte.gz").exists():
        from diffusion.data.sources.fashion_mnist import parse_idx

        files = [Path(name) / f"t10k-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
        images, labels = (parse_idx(gzip.decompress(file.read_bytes()), file) for file in files)
        images = images[..., None]
    else:
        images, labels = load_folder(name)
    order = np.random.default_rng(0).permutation(len(images))
    return images[order], np.asarray(labels)[order]


def load_folder(name: str) -> tuple[Images, Labels]:
    """Return the images of a folder, on white, by classes."""
    folder, _, size = name.partition(":")
    images, labels = [], []
    for label, place in enumerate(sorted(path for path in Path(folder).iterdir() if path.is_dir())):
        for file in sorted(place.iterdir()):
            picture = Image.open(file).convert("RGBA").resize(2 * (int(size or 32),), Image.Resampling.BOX)
            white = Image.new("RGBA", picture.size, "white")
            white.alpha_composite(picture)
            images.append(np.asarray(white.convert("RGB")))
            labels.append(label)
    return np.stack(images), np.array(labels)


def distort(images: Images, labels: Labels) -> Distorted:
    """Return the images in every distortion, by names such as `noise 8`."""
    draw, x = np.random.default_rng(1), images.astype(float)
    noise, scale = draw.normal(size=x.shape), x.shape[1] / 32
    shift = np.array([1, -0.5, -0.5]) if x.shape[3] == 3 else 1.0
    where, others = draw.random(x.shape[:3]), images[draw.permutation(len(images))]
    made = {"none": x, "silhouettes": silhouettes(x)}
    made |= {f"noise {s}": x + s * noise for s in NOISE}
    made |= {f"blur {s}": gaussian_filter(x, (0, s * scale, s * scale, 0)) for s in BLUR}
    made |= {f"colour {s}": x + s * shift for s in COLOUR}
    mixed = shuffled_pixels(others, draw)
    made |= {f"speckles {p}": np.where((where < p)[..., None], mixed, x) for p in SPECKLES}
    kept = draw.permutation(labels.max() + 1)
    made |= {f"missing {p}": x[np.isin(labels, kept[round(p * len(kept)) :])] for p in MISSING}
    return {key: value.round().clip(0, 255).astype(np.uint8) for key, value in made.items()}


def silhouettes(x: np.ndarray) -> np.ndarray:
    """Fill whatever is not background with one colour, the mean of all images there; close holes."""
    background = np.median(x[:, [0, 0, -1, -1], [0, -1, 0, -1]], axis=(0, 1))
    inside = np.abs(x - background).max(axis=3) > 24
    inside = np.stack([binary_fill_holes(one) for one in inside])[..., None]
    return np.where(inside, (x * inside).sum(axis=(0, 1, 2)) / inside.sum(), background)


def shuffled_pixels(images: Images, draw: np.random.Generator) -> Images:
    """Return images of pixels from random places and images."""
    pixels = images.reshape(-1, images.shape[3])
    return pixels[draw.integers(len(pixels), size=images.shape[:3])]


def extractor(size: int) -> Extractor:
    """Return EfficientNet-Lite0 for an input size that need not be registered."""
    spec = dataclasses.replace(EXTRACTORS["effnet-lite0-64"], size=size, name=f"effnet-lite0-{size}")
    weights = read_weights(spec)
    assert weights is not None
    return Extractor(spec, "", EfficientNetLite0(size, weights), torch.device("cpu"))


def scores(
    of: Callable[[Images], FeatureArray], sets: Distorted, real: Images
) -> dict[str, tuple[float, float]]:
    """Return kernel and Fréchet distance of every set."""
    reference = of(real)
    target, found = Target(reference), {}
    for name, images in sets.items():
        features = of(images)
        drawn = kernel_distance.subsets(len(features), len(reference))
        own = kernel_distance.own_sums(kernel_distance.Kernel(reference, reference), drawn.reference)
        near = kernel_distance.kernel_distance(kernel_distance.kernels(features, reference), drawn, own)
        found[name] = near.mean, ProjectedSample(features, target).distance
    return found


def equal_noise(values: dict[str, float]) -> float:
    """Return the noise that scores like silhouettes, interpolated; infinite if no noise here does."""
    return float(np.interp(values["silhouettes"], [values[f"noise {s}"] for s in NOISE], NOISE, right=np.inf))


def main() -> None:
    """Print a table: distances in multiples of those of silhouettes."""
    options = argparse.ArgumentParser()
    options.add_argument("name")
    options.add_argument("sizes", nargs="*", type=int, default=SIZES)
    options.add_argument("--images", type=int, default=200)
    given = options.parse_args()
    images, labels = load(given.name)
    count = given.images
    sets, real = distort(images[:count], labels[:count]), images[count:][:REAL]
    table = []
    for size in given.sizes:
        model = extractor(size)
        found = scores(lambda images, model=model: extract(model, images).features, sets, real)
        for kind, number in (("kd", 0), ("fd", 1)):
            values = {name: both[number] - found["none"][number] for name, both in found.items()}
            table.append((f"{kind} {size}", values))
    print("| | " + " | ".join(name for name, _ in table) + " |\n| --- |" + " --- |" * len(table))
    for name in sets:
        row = [f"{values[name] / values['silhouettes']:.2f}" for _, values in table]
        print(f"| {name} | " + " | ".join(row) + " |")
    print("| equal noise | " + " | ".join(f"{equal_noise(values):.0f}" for _, values in table) + " |")


if __name__ == "__main__":
    main()
