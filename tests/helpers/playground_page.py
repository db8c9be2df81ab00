"""The playground's page in a browser; any request to another server is a fault."""

from typing import Any
from urllib.parse import urlsplit

from tests.helpers.served_images import Greys, decoded
from tests.helpers.server_process import ServerProcess

FITS = "document.documentElement.scrollWidth <= innerWidth"


def opened(context: Any, server: ServerProcess) -> Any:
    """Open the page; its JavaScript errors and requests to other servers are collected in `faults`."""
    from playwright.sync_api import expect

    page = context.new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("request", lambda request: _check_server(page, request.url))
    page.goto(server.url)
    expect(page.locator("#about")).to_contain_text("10 classes")
    return page


def _check_server(page: Any, url: str) -> None:
    if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).hostname != "127.0.0.1":
        page.faults.append(url)


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
