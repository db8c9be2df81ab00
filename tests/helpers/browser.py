"""A headless Chromium for tests of pages."""

import re
import shutil

import numpy as np
import pytest
from numpy.typing import NDArray

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
WIDE, PHONE = {"width": 1600, "height": 1000}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    """Yield the browser; close it after the module's tests."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


# Each visible text with its colour and background, as [text, rgb(…), rgb(…)].
TEXTS = """() => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
    const clear = colour => colour === "transparent" || colour === "rgba(0, 0, 0, 0)";
    while (walker.nextNode()) {
        const text = walker.currentNode.data.trim(), owner = walker.currentNode.parentElement;
        if (!text || !owner.checkVisibility()) continue;
        const style = getComputedStyle(owner), drawn = owner.closest("svg") !== null;
        let ground = owner;
        while (ground && clear(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;
        const below = getComputedStyle(ground || document.body).backgroundColor;
        found.push([text, drawn ? style.fill : style.color, below]);
    }
    return found;
}"""


def hexadecimal(colour: str) -> str:
    """Convert a computed colour such as rgb(1, 2, 3) to #010203, without transparency."""
    return "#" + "".join(f"{int(float(value)):02x}" for value in re.findall(r"[\d.]+", colour)[:3])


LUMINANCE = np.array([0.2126729, 0.7151522, 0.0721750])  # of linear sRGB, for D65


def linear(colour: str) -> NDArray[np.float64]:
    """Return the linear sRGB (3,) of a colour such as #0b62a8."""
    values = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """Return the contrast of WCAG 2: 1 to 21."""
    low, high = sorted(float(LUMINANCE @ linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)
