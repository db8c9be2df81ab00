"""FID and KID of real images by the real Inception, against torch-fidelity's published values.

DIFFCTL_REAL names a folder with CIFAR-10's official files in `cifar-10-batches-py`, and with the weights that
`diffctl weights inception` writes as `inception.*`. The test takes about 20 minutes of two cores.
"""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from diffusion.system.files import sha256_file

REAL = os.environ.get("DIFFCTL_REAL")
SPLITS = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}


def official_images(folder, names):
    """Return the images of CIFAR-10's files in the official order, (N, 32, 32, 3)."""
    batches = [pickle.loads((folder / name).read_bytes(), encoding="bytes")[b"data"] for name in names]
    return np.concatenate(batches).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


@pytest.mark.long
@pytest.mark.skipif(not REAL, reason="DIFFCTL_REAL names no folder with CIFAR-10 and Inception's weights")
def test_fid_and_kid_of_cifar10_equal_the_published_values(tmp_path, invoke):
    """torch-fidelity's regression test: 5,000 training against 5,000 test images, KID in subsets of 1,000."""
    folder = Path(REAL)
    for split, names in SPLITS.items():
        images = official_images(folder / "cifar-10-batches-py", names)
        rows = np.sort(np.random.RandomState(2020).choice(len(images), 5000, replace=False))
        np.savez(tmp_path / f"{split}.npz", arr_0=images[rows])
    (weights,) = folder.glob("inception.*")
    command = ["evaluate", f"{tmp_path}/train.npz", "--against", f"{tmp_path}/test.npz", "--json"]
    command += ["--extractor", "inception-v3-compat", "--kid-subset-size", "1000"]
    found = json.loads(
        invoke(*command, "--weights", str(weights), "--weights-sha256", sha256_file(weights)).out
    )
    assert found["card"]["kid_subset_size"] == 1000
    assert found["scores"]["fid"] == pytest.approx(10.32333, abs=0.01)
    assert found["scores"]["kid"] == pytest.approx(-2.907863e-05, abs=1e-7)
