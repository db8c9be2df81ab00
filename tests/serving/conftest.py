"""A served model of random weights, and the playground's page over another one in a browser."""

from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from diffusion.images.store import write_store
from diffusion.layout import MODEL, PREPARED, SCORES
from diffusion.protocol.scores_document import write_scores_document
from serving.app import create_app
from tests.helpers.browser import PHONE, WIDE
from tests.helpers.raw_data import random_images
from tests.helpers.served_images import HERE, Greys, decoded
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


FITS = "document.documentElement.scrollWidth <= innerWidth"


def opened(context: Any, server: ServerProcess) -> Any:
    """Open the page; its JavaScript errors and requests to other servers are collected in `faults`."""
    page = context.new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    own = ("data", "blob", "http://127.0.0.1:")
    page.on("request", lambda one: None if one.url.startswith(own) else page.faults.append(one.url))
    page.goto(server.url)
    shows(page, "#about", "10 classes")
    return page


def shows(page: Any, where: str, text: str) -> None:
    """Wait until an element contains a text."""
    from playwright.sync_api import expect

    expect(page.locator(where)).to_contain_text(text, timeout=60_000)


def fill(page: Any, **settings: float) -> None:
    """Fill in fields of the settings."""
    for name, value in settings.items():
        page.fill(f"#settings [name='{name}']", str(value))


def make(page: Any, count: int) -> None:
    """Make that many images."""
    page.click("#make .main")
    shows(page, "#make .status", f"{count} in ")


def pixels_of(image: Any) -> Greys:
    """Return the grey image (H, W) of an image element."""
    return decoded(image.get_attribute("src").partition(",")[2])
