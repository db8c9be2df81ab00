"""Every ring is prepared once, with its label."""

from pathlib import Path

import numpy as np

from tests.helpers.raw_data import prepared


def test_thick_rings_are_brighter_and_all_rings_differ(tmp_path: Path) -> None:
    train, test = prepared(tmp_path, name="rings", count=200)
    assert (len(train), len(test)) == (180, 20)
    assert train.meta["counts"] == [90, 90]
    images = np.concatenate([train.images, test.images])
    assert len({image.tobytes() for image in images}) == 200
    light = train.images.mean(axis=(1, 2, 3))
    assert light[train.labels == 1].mean() > 1.5 * light[train.labels == 0].mean()
