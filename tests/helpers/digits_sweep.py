"""Real digits as a prepared set, and a sweep of them with noise that falls with steps and rises with eta.

Also features of no images.
"""

import numpy as np

from diffusion.config import parse
from diffusion.evaluate.features.extractors import load_extractor
from diffusion.evaluate.sweep_scores import evaluate
from diffusion.images.store import open_store, write_store
from diffusion.protocol.grid import cell_settings, grid, open_cells, settings_card
from tests.conftest import params

CLASSES = [str(digit) for digit in range(10)]
ONE_CELL = {"steps": [50], "eta": [0.0]}
SWEEP = {"steps": [5, 10, 50], "eta": [0.0, 1.0]}


def make_config(images=60, sweep=SWEEP, **sections):
    """A small config, by default with a grid of 6 cells."""
    return parse(params(sample={"num_images": images}, sweep=sweep, **sections), "test")


def real_digits():
    """(1797, 8, 8, 1) uint8 images and their labels."""
    from sklearn.datasets import load_digits  # a GPU's machine may have none

    digits = load_digits()
    return (digits.images[..., None] * 15.9375).round().astype(np.uint8), digits.target


def write_prepared(path, train=120, test=64):
    """Stores path/train and path/test of the first real digits."""
    images, labels = real_digits()
    for split, rows in (("train", slice(0, train)), ("test", slice(train, train + test))):
        meta = {
            "name": "digits",
            "split": split,
            "classes": CLASSES,
            "counts": np.bincount(labels[rows], minlength=10).tolist(),
            "image_size": 8,
            "channels": 1,
            "options": {},
            "sources": {},
            "pixel_std": 0.5,
        }
        write_store(path / split, images[rows], labels[rows], meta)
    return path


def write_cell(path, config, cell, offset=1000, model_sha256="a" * 64, sampling_torch="2.13.0"):
    """Write a cell of real digits with noise, class i % 10 at index i."""
    images, labels = real_digits()
    count = config.sample.num_images
    pools = [offset + np.flatnonzero(labels[offset:] == digit) for digit in range(10)]
    rows = [pools[i % 10][(i // 10) % len(pools[i % 10])] for i in range(count)]
    noise = np.random.default_rng(0).normal(size=(count, *images.shape[1:]))
    scale = 120 / cell.steps + 10 * cell.eta
    noisy = (images[rows] + scale * noise).round().clip(0, 255).astype(np.uint8)
    card = {
        "model_sha256": model_sha256,
        "ema": True,
        "precision": "fp32",
        **settings_card(cell_settings(config.sample, cell)),
        "sampling_torch": sampling_torch,
        "num_images": count,
    }
    meta = {"name": cell.name, "classes": CLASSES, "card": card}
    return write_store(path, noisy, labels[rows], meta)


def write_sweep(path, config):
    """Every cell of the config's grid."""
    for cell in grid(config.sample, config.sweep):
        write_cell(path / cell.name, config, cell)
    return path


def score_sweep(config, samples, reference, progress=None, prepared=None):
    """The scores document of the config's grid, as the stage makes it."""
    cells = open_cells(config.sample, config.sweep, samples)
    return evaluate(cells, config.evaluate, reference, progress, prepared)


def effnet():
    """The embedded default extractor."""
    return load_extractor("effnet-lite0-64")


def tamper(path, row=0):
    """Change one pixel of a stored image behind the digest's back."""
    images = np.load(path / "images.npy", mmap_mode="r+")
    images[row, 0, 0, 0] ^= 255
    images.flush()


def rewrite(path):
    """Write a store again with one pixel changed, digest included."""
    store = open_store(path)
    images = np.array(store.images)
    images[0, 0, 0, 0] ^= 255
    return write_store(path, images, store.labels, store.meta)


def normal(seed, count, dimension=16, shift=0.0, scale=1.0):
    """Return float32 Gaussian features (count, dimension) of mean `scale`·`shift` and deviation `scale`."""
    drawn = np.random.default_rng(seed).normal(size=(count, dimension))
    return (scale * (drawn + shift)).astype(np.float32)
