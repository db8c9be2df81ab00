"""The images of the tests of training."""

from pathlib import Path

import pytest

from diffusion.images.store import ImageStore, open_store


@pytest.fixture
def store(digits_store: Path) -> ImageStore:
    """Return a store of 64 digits."""
    return open_store(digits_store)
