"""The report in headless Chromium: readable in light, dark and print, on a phone and a wide screen."""

import pytest

from diffusion.report.theme import DARK, LIGHT
from tests.helpers.browser import NEEDS_CHROMIUM, PHONE, TEXTS, WIDE, contrast, hexadecimal

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]


def test_montage_enlarges_on_focus(written, browser):
    page = browser.new_page(viewport=PHONE)
    page.goto(written.as_uri())
    cell = page.locator(".montage img").first
    before = cell.bounding_box()["width"]
    cell.focus()
    assert cell.bounding_box()["width"] > 1.5 * before
    page.keyboard.press("Tab")
    assert cell.bounding_box()["width"] == before
    page.close()


@pytest.mark.parametrize(
    ("scheme", "colours", "size"), [("light", LIGHT, WIDE), ("dark", DARK, PHONE)], ids=["wide", "phone"]
)
def test_page_fits_and_text_has_contrast_in_both_schemes(with_seeds, browser, scheme, colours, size):
    width = size["width"]
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.goto(with_seeds.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(folded => folded.open = true)")
    texts = page.evaluate(TEXTS)
    assert {hexadecimal(ground) for _, _, ground in texts} <= {colours["paper"], colours["panel"]}
    seen = {(text, hexadecimal(ink), hexadecimal(ground)) for text, ink, ground in texts}
    assert [one for one in seen if contrast(*one[1:]) < 4.5] == []
    drawn = page.eval_on_selector_all("svg path", "found => found.map(one => getComputedStyle(one).stroke)")
    assert {colours["line0"], colours["line1"]} <= {hexadecimal(one) for one in drawn if one != "none"}
    assert page.evaluate("document.documentElement.scrollWidth") == width
    edges = "rows => rows.map(row => [...row.children].map(cell => cell.getBoundingClientRect().left))"
    grid = page.eval_on_selector_all(".montage tbody tr", edges)
    assert all(row == grid[-1][: len(row)] for row in grid)
    style = "all => all.map(one => getComputedStyle(one).backgroundAttachment)"
    assert all("local" in one for one in page.eval_on_selector_all(".scroll", style)), "marks a hidden part"
    for caption in page.locator("figcaption, caption").all():
        assert caption.bounding_box()["x"] + caption.bounding_box()["width"] <= width
    page.close()


def test_print_is_light_unfolded_and_complete(written, browser):
    width = 718  # CSS pixels of A4 between margins of a centimetre
    page = browser.new_page(viewport={"width": width, "height": 1100}, color_scheme="dark")
    page.emulate_media(media="print")
    page.goto(written.as_uri())
    texts = page.evaluate(TEXTS)
    assert {hexadecimal(ground) for _, _, ground in texts} <= {LIGHT["paper"], LIGHT["panel"]}
    folded = page.locator("details")
    assert folded.count() == 2
    for one in folded.all():
        assert one.get_attribute("open") is None
        assert one.bounding_box()["height"] > 10 * one.locator("summary").bounding_box()["height"]
    beyond = f"one.getBoundingClientRect().right > {width + 1}"
    cut = "one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).overflowX !== 'visible'"
    script = f"all => all.filter(one => {beyond} || {cut}).map(one => one.outerHTML)"
    assert page.eval_on_selector_all("main *", script) == []
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()
