"""A served model of random weights, and the playground's page over another one."""

import numpy as np
import pytest
from starlette.testclient import TestClient

from diffusion.images.store import write_store
from diffusion.layout import MODEL, PREPARED, SCORES
from diffusion.protocol.scores_document import write_scores_document
from serving.app import create_app
from tests.helpers.browser import PHONE, WIDE
from tests.helpers.playground_page import FITS, opened
from tests.helpers.raw_data import random_images
from tests.helpers.served_images import HERE
from tests.helpers.server_process import ServerProcess, published, scores_of, service_of, small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model") / "m.safetensors")


@pytest.fixture
def service(model):
    return service_of(published(model))


@pytest.fixture
def client(service):
    with TestClient(create_app(service), HERE) as client:
        yield client


@pytest.fixture(scope="session")
def here(tmp_path_factory):
    """A project with a model, its scores and real images."""
    folder = tmp_path_factory.mktemp("project")
    write_scores_document(folder / SCORES, scores_of(small_model(folder / MODEL)))
    classes = [f"class{i}" for i in range(10)]
    write_store(folder / PREPARED / "test", random_images(0, 6, 8, 1), np.arange(6), {"classes": classes})
    return folder


@pytest.fixture(scope="module")
def playground(here):
    with ServerProcess(here, name="playground") as server:
        yield server


@pytest.fixture
def page(browser, playground):
    """The page on a phone, which it fits at the end of each test."""
    with browser.new_context(viewport=PHONE, accept_downloads=True) as context:
        page = opened(context, playground)
        yield page
        assert page.evaluate(FITS)
        assert page.faults == []


@pytest.fixture
def wide(browser, playground):
    with browser.new_context(viewport=WIDE) as context:
        page = opened(context, playground)
        yield page
        assert page.faults == []
