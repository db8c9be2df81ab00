"""The playground in headless Chromium; any request to another server fails the test."""

import json
import signal

import numpy as np
import pytest
from PIL import Image

from diffusion.layout import MODEL
from diffusion.protocol.settings import SampleSettings
from tests.helpers.browser import NEEDS_CHROMIUM, WIDE
from tests.helpers.mlflow_server import empty_database
from tests.helpers.playground_page import FITS, fill, make, opened, pixels_of, shows
from tests.helpers.served_images import assert_offline
from tests.helpers.server_process import ServerProcess, trained
from tracking.registry.model_registry import register

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]


def test_images_are_made_and_saved_with_their_settings(page, here, tmp_path):
    fill(page, num=3, seed=5, steps=6, eta=0.5)
    page.press("#settings [name=eta]", "Enter")
    shows(page, "#make .status", "3 in ")
    images = page.locator("#make li img")
    settings = SampleSettings(steps=6, eta=0.5, seed=5)
    shown = np.stack([pixels_of(images.nth(i)) for i in range(3)])
    assert_offline(shown, here / MODEL, settings, range(3))
    with page.expect_download() as download:
        page.locator("#make li a").nth(2).press("Enter")
    assert download.value.suggested_filename == "test-seed5-2-steps6-eta0.5.png"
    download.value.save_as(tmp_path / "saved.png")
    with Image.open(tmp_path / "saved.png") as saved:
        metadata = json.loads(saved.text["diffctl"])
        assert np.array_equal(np.asarray(saved, dtype=int), shown[2])
    assert SampleSettings(**metadata["settings"]) == settings
    assert (metadata["index"], metadata["class"]) == (2, "class2")


def test_intermediate_images_are_shown(wide):
    wide.evaluate("""() => {
        window.seen = [];
        new MutationObserver((all) => all.forEach(({ oldValue }) => window.seen.push(oldValue)))
            .observe(document.querySelector("#make .images"),
                { subtree: true, attributeFilter: ["alt"], attributeOldValue: true });
    }""")  # what each change replaced: two that come together are one call, which would see the last alone
    fill(wide, num=1, steps=8)
    make(wide, 1)
    assert "Image 0 after step 4" in wide.evaluate("window.seen")


def test_an_invalid_setting_is_shown_on_the_page(wide):
    for field, value, sentence, valid in (("steps", 101, "Steps: ", 2), ("eta", 50, "eta 50.0", 1)):
        fill(wide, **{field: value})
        wide.click("#make .main")
        shows(wide, "#make .wrong", sentence)
        assert wide.locator("#make .wrong").is_visible()
        fill(wide, **{field: valid})
    make(wide, 10)
    assert not wide.locator("#make .wrong").is_visible()


def test_compare_shows_a_grid_of_steps_and_eta(page, here):
    page.click("#tab-compare")
    page.fill("#compare [name=steps]", "2, 4")
    page.fill("#compare [name=etas]", "0, 1, 50")
    page.fill("#compare [name=num]", "2")
    page.click("#compare .main")
    shows(page, "#compare .status", "6 of 6 cells")
    rows = page.locator("#compare tbody tr")
    shown = rows.nth(1).locator("td").nth(1).locator("img")
    images = np.stack([pixels_of(shown.nth(i)) for i in range(2)])
    assert_offline(images, here / MODEL, SampleSettings(steps=4, eta=1.0), range(2))
    assert "NFE 4" in rows.nth(0).locator("td").nth(1).text_content()
    assert "eta 50.0 does not fit 2 steps" in rows.nth(2).locator("td").nth(0).text_content()
    assert page.evaluate(FITS)
    page.select_option("#settings [name=sampler]", "dpm-solver++")
    page.click("#compare .main")
    shows(page, "#compare .status", "2 of 2 cells")
    page.fill("#compare [name=steps]", "2, x")
    page.click("#compare .main")
    shows(page, "#compare .wrong", "Steps: give numbers with commas between them (got 2, x)")


def test_the_slider_moves_through_the_interpolation(page, here, tmp_path):
    fill(page, steps=4)
    page.click("#tab-between")
    page.fill("#between [name=frames]", "5")
    page.click("#between .main")
    shows(page, "#between .status", "5 images in")
    slider, at = page.locator("#between [type=range]"), page.locator("#between .at")
    slider.press("Home")
    first = pixels_of(at)
    assert_offline(first, here / MODEL, SampleSettings(steps=4), [0])
    slider.press("ArrowRight")
    assert page.locator("#between .where").text_content() == "25 %"
    assert not np.array_equal(pixels_of(at), first)
    page.select_option("#between [name=kind]", "numbers")
    page.fill("#between [name=number1]", "4")
    page.click("#between .main")
    shows(page, "#between .status", "5 images in")
    assert page.locator("#between .real").nth(1).get_attribute("src") == "/playground/images/4"
    page.select_option("#between [name=kind]", "files")
    page.click("#between .main")
    shows(page, "#between .wrong", "choose the first file")
    for number, size in enumerate([(40, 30), (8, 8)]):
        Image.new("RGB", size, (250, 10, 10)).save(tmp_path / f"{number}.png")
        page.set_input_files(f"#between [name=file{number}]", tmp_path / f"{number}.png")
    page.click("#between .main")
    shows(page, "#between .status", "5 images in")


def test_the_last_setting_is_marked_on_the_cost_curve(page):
    page.click("#tab-cost")
    shows(page, "#cost .finding", "Make images: their setting and time are marked here")
    assert page.locator("#cost circle").count() == 2
    page.click("#tab-make")
    make(page, 10)
    page.click("#tab-cost")
    shows(page, "#cost .finding", "NFE 8 per image")
    shows(page, "#cost .finding", "steps8-eta1 of the sweep, fd_effnet_lite0_64 200.")
    assert page.locator("#cost circle.chosen").count() == 1
    fill(page, guidance=2)
    page.press("#settings [name=guidance]", "Enter")
    shows(page, "#make .status", "10 in ")
    page.click("#tab-cost")
    shows(page, "#cost .finding", "NFE 16 per image")
    shows(page, "#cost .finding", "The sweep has no cell with these settings")


def test_every_control_is_reachable_by_keyboard(wide):
    wide.focus("#tab-make")
    for key, panel in [
        ("ArrowRight", "compare"), ("End", "cost"), ("ArrowRight", "make"), ("ArrowLeft", "cost"),
        ("Home", "make"),
    ]:  # fmt: skip
        wide.keyboard.press(key)
        assert wide.evaluate("document.activeElement.id") == f"tab-{panel}"
        assert wide.locator("[role=tabpanel]:visible").get_attribute("id") == panel
    wide.focus("#settings [name=class]")
    reached = set()
    for _ in range(20):
        reached.add(wide.evaluate("document.activeElement.name || document.activeElement.id"))
        wide.keyboard.press("Tab")
    wanted = {"class", "num", "seed", "steps", "eta", "sampler", "spacing", "noise", "guidance", "clip"}
    assert reached >= wanted | {"tab-make"}


def test_a_registered_version_can_be_chosen(browser, project):
    empty_database(project / "mlflow.db")
    for seed, kernel in [(1, 0.1), (2, 0.2)]:
        trained(seed, kernel)
        register()
    with ServerProcess(project, "--champion", name="playground") as server:
        with browser.new_context(viewport=WIDE) as context:
            page = opened(context, server)
            shows(page, "#version", "diffctl-digits version 1, champion")
            page.select_option("#version", "2")
            shows(page, "#about", "version 2")
            make(page, 10)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
        assert server.log.read_text().endswith("version 2 serves now\n")
