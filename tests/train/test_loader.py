import threading
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.images.store import write_store
from diffusion.system.threads import PREFETCH_NAME, prefetch
from diffusion.train.batch import ImageLoader


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    images = np.random.default_rng(0).integers(0, 256, (50, 6, 6, 3), dtype=np.uint8)
    return write_store(tmp_path_factory.mktemp("data") / "train", images, None, {"name": "noise"})


def read(batches, rows):
    return (batches[rows],)


@pytest.mark.parametrize("resident", [False, True])
@settings(deadline=None, max_examples=25)
@given(rows=st.lists(st.integers(0, 49), max_size=20))
def test_a_batch_has_the_requested_images_in_order(store, resident, rows):
    batch = ImageLoader(store, "cpu", resident=resident)[torch.tensor(rows, dtype=torch.int64)]
    assert batch.is_contiguous()
    np.testing.assert_array_equal(batch.numpy(), store.images[rows].transpose(0, 3, 1, 2))


def test_prefetch_runs_only_a_little_ahead(store):
    taken = []

    def draws():
        for step in range(1000):
            taken.append(step)
            yield partial(read, batches, torch.tensor([step % 50]))

    batches = ImageLoader(store, "cpu")
    fetched = prefetch(draws(), "cpu", depth=2)
    next(fetched)
    assert len(taken) == 3
    fetched.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(PREFETCH_NAME)]


@pytest.mark.parametrize("row", [-1, 50])
@pytest.mark.parametrize("resident", [False, True])
def test_an_invalid_row_is_refused(store, row, resident):
    batches = ImageLoader(store, "cpu", resident=resident)
    with pytest.raises(IndexError, match="of a set of 50 images"):
        batches[torch.tensor([0, row])]
    with pytest.raises(IndexError):
        list(prefetch([partial(read, batches, torch.tensor([row]))], "cpu"))
