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


Floats = NDArray[np.float64]

# Linear sRGB without one kind of cone: the matrices at severity 1 of Machado, Oliveira and
# Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency".
EYES = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)  # of linear sRGB, for D65


def linear(colour: str) -> Floats:
    """Return the linear sRGB (3,) of a colour such as #0b62a8."""
    values = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: Floats) -> Floats:
    """CIE L*a*b* (3,) of linear sRGB, with D65 as white."""
    scaled = TO_XYZ @ rgb / TO_XYZ.sum(1)
    x, y, z = np.where(scaled > 216 / 24389, np.cbrt(scaled), (24389 / 27 * scaled + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def apart(one: str, other: str, eye: Floats) -> float:
    """Return ΔE (1976) between two colours for this eye; about 2.3 is just noticeable."""
    a, b = (lab(np.clip(eye @ linear(colour), 0, 1)) for colour in (one, other))
    return float(np.linalg.norm(a - b))


def contrast(one: str, other: str) -> float:
    """Return the contrast of WCAG 2: 1 to 21."""
    low, high = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)
