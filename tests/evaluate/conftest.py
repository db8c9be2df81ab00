"""What several tests of scores share: an extractor, a reference, and random weights."""

import pytest

from diffusion.evaluate.references import make_reference
from tests.helpers.digits_sweep import effnet, make_config, write_prepared
from tests.helpers.torch_fidelity_adapter import write_random_inception


@pytest.fixture(scope="session")
def extractor():
    """Return the bundled extractor."""
    return effnet()


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """Return a folder, never to be changed, with real digits in `prepared` and their `reference`."""
    root = tmp_path_factory.mktemp("real")
    write_prepared(root / "prepared")
    make_reference(make_config().evaluate, root / "prepared", root / "reference")
    return root


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory):
    """Return a file with random Inception weights, and its SHA-256."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    return path, write_random_inception(path)
