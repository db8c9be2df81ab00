"""The playground's tab Edit in headless Chromium: masks by mouse, finger and keyboard, and the results."""

import base64
import json

import httpx
import numpy as np
import pytest
from PIL import Image

from diffusion.images.pictures import png_bytes
from diffusion.layout import MODEL
from diffusion.protocol.settings import SampleSettings
from tests.helpers.browser import NEEDS_CHROMIUM
from tests.helpers.raw_data import random_images
from tests.helpers.served_images import assert_offline, decoded, pixels
from tests.serving.conftest import fill, pixels_of, shows

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]

SIZE = 8
PICTURES = random_images(0, 6, SIZE, 1)  # those of the project


def opened(page, number=2):
    """Open the tab with a real image and a brush of one pixel."""
    fill(page, steps=4, eta=0)
    page.click("#tab-edit")
    page.fill("#edit [name=number]", str(number))
    page.press("#edit [name=number]", "Tab")
    shows(page, "#class-note", f"Class class{number}, the picture's own")
    page.fill("#edit [name=brush]", "1")


def place(page, column, row):
    """The middle of a pixel of the picture on the page."""
    box = page.locator("#edit canvas").bounding_box()
    pixel = box["width"] / SIZE
    return {"x": box["x"] + (column + 0.5) * pixel, "y": box["y"] + (row + 0.5) * pixel}


def draw_row(page, row):
    """Draw over a row by mouse."""
    page.locator("#edit canvas").scroll_into_view_if_needed()
    page.mouse.move(*place(page, 0, row).values())
    page.mouse.down()
    page.mouse.move(*place(page, SIZE - 1, row).values(), steps=3)
    page.mouse.up()


def drawn(page):
    """The picture as the page shows it, with the mask over it, in red levels (H, W)."""
    url = page.locator("#edit canvas").evaluate("canvas => canvas.toDataURL()")
    return decoded(url.partition(",")[2])[..., 0]


def results(page, count=8):
    page.click("#edit .main")
    shows(page, "#edit .status", f"{count} in ")
    images = page.locator("#edit li img")
    return np.stack([pixels_of(images.nth(i)) for i in range(count)])


def test_a_mask_by_mouse_is_filled_in_eight_ways_and_other_pixels_stay(page, playground):
    opened(page)
    page.evaluate("""() => {
        window.seen = [];
        new MutationObserver((all) => all.forEach(({ oldValue }) => window.seen.push(oldValue)))
            .observe(document.querySelector("#edit .images"),
                { subtree: true, attributeFilter: ["alt"], attributeOldValue: true });
    }""")
    draw_row(page, 1)
    shows(page, "#mask-note", "13 % of the picture")
    found, rows = results(page), np.arange(SIZE) != 1
    assert (found[:, rows] == PICTURES[2, rows, :, 0]).all()
    assert len({image.tobytes() for image in found}) == 8
    assert {"Image 0, pending", "Image 7 after step 2"} <= set(page.evaluate("window.seen"))
    body = {"image": base64.b64encode(png_bytes(PICTURES[2])).decode(), "operator": "mask:0,1,8,2"}
    served = httpx.post(f"{playground.url}/v1/edits", json={**body, "steps": 4, "class": 2})
    assert np.abs(found - pixels(served.json())).max() <= 1


def test_finger_and_keyboard_draw_and_undo_and_clear_remove(page):
    opened(page)
    picture = drawn(page)
    assert np.array_equal(picture, PICTURES[2, ..., 0])
    page.click("#edit .main")
    shows(page, "#edit .wrong", "draw over the part of the picture that is to be filled")
    page.locator("#edit canvas").scroll_into_view_if_needed()
    touch = page.context.new_cdp_session(page)
    for kind, points in (("Start", [(3, 5)]), ("Move", [(6, 5)]), ("End", [])):
        touches = [place(page, *point) for point in points]
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": touches})
    changed = drawn(page) != picture
    assert changed[5, 3:7].all()
    assert changed.sum() == 4
    page.focus("#edit canvas")
    for key in ("ArrowLeft", "ArrowUp", "Space"):
        page.keyboard.press(key)
    changed[4, 5] = True
    assert np.array_equal(drawn(page) != picture, changed)
    page.keyboard.press("Control+z")
    changed[4, 5] = False
    assert np.array_equal(drawn(page) != picture, changed)
    page.click("#edit [name=clear]")
    assert np.array_equal(drawn(page), picture)
    page.click("#edit [name=undo]")
    assert np.array_equal(drawn(page) != picture, changed)


def test_the_whole_picture_is_sampled_again_by_strength_and_saved_with_it(wide, tmp_path):
    opened(wide)
    wide.check("#edit [value=again]")
    wide.locator("#edit [name=strength]").press("Home")
    assert wide.locator("#edit output").text_content() == "0.05"
    far = []
    for key in ("Home", "End"):
        wide.locator("#edit [name=strength]").press(key)
        far.append(np.abs(results(wide) - PICTURES[2, ..., 0]).mean())
    assert far[0] < far[1]
    with wide.expect_download() as download:
        wide.locator("#edit li a").nth(1).press("Enter")
    download.value.save_as(tmp_path / "saved.png")
    with Image.open(tmp_path / "saved.png") as saved:
        metadata = json.loads(saved.text["diffctl"])
    assert (metadata["index"], metadata["edit"]["method"]) == (1, "sdedit")
    assert metadata["edit"]["method_options"] == {"strength": 1}


def test_enter_in_the_number_edits_the_picture_of_that_number(wide):
    opened(wide)
    wide.check("#edit [value=again]")
    wide.locator("#edit [name=strength]").press("Home")
    wide.fill("#edit [name=number]", "4")
    wide.press("#edit [name=number]", "Enter")
    shows(wide, "#edit .status", "8 in ")
    shows(wide, "#class-note", "Class class4")
    found = pixels_of(wide.locator("#edit li img").first)
    far = [np.abs(found - PICTURES[number, ..., 0]).mean() for number in (4, 2)]
    assert far[0] < far[1]


def test_files_and_sampled_images_are_edited(page, here, tmp_path):
    opened(page)
    page.select_option("#edit [name=kind]", "sampled")
    page.fill("#edit [name=index]", "3")
    page.click("#edit [name=resample]")
    shows(page, "#class-note", "class3")
    assert_offline(drawn(page), here / MODEL, SampleSettings(steps=4), [3])
    page.select_option("#edit [name=kind]", "file")
    Image.new("RGB", (40, 30), (250, 10, 10)).save(tmp_path / "red.png")
    page.set_input_files("#edit [name=file]", tmp_path / "red.png")
    shows(page, "#class-note", "The picture's class is not known")
    page.fill("#edit [name=num]", "2")
    page.select_option("#edit [name=method]", "projection")
    draw_row(page, 6)
    found = results(page, 2)
    assert (found[:, :6] == 82).all(), "the luma of the red"
    assert not (found[:, 6] == 82).all()
