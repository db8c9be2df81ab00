"""The playground in headless Chromium: its tabs, settings and versions; it requests no other server."""

import json
import signal

import httpx
import numpy as np
import pytest
from PIL import Image

from diffusion.layout import MODEL, SCORES
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.process.process_registry import EDMConfig
from diffusion.protocol.grid import sampling_version
from diffusion.protocol.scores_document import write_scores_document
from diffusion.protocol.settings import SampleSettings
from tests.helpers.browser import NEEDS_CHROMIUM, WIDE
from tests.helpers.mlflow_server import empty_database
from tests.helpers.networks import artefact_of, network_of, spec_of
from tests.helpers.served_images import assert_offline
from tests.helpers.server_process import ServerProcess, scores_of, small_model, trained
from tests.serving.conftest import FITS, fill, make, opened, pixels_of, shows
from tracking.registry.registered_models import register

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


def test_a_seed_that_javascript_would_round_is_refused(page):
    fill(page, num=1, steps=1, seed=2**53)
    page.click("#make .main")
    shows(page, "#make .wrong", "Seed: ")


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
    shows(page, "#cost .finding", "steps8-eta1 of the sweep, kd_effnet_lite0_64 0.2.")
    assert page.locator("#cost circle.chosen").count() == 1
    fill(page, guidance=2)
    page.press("#settings [name=guidance]", "Enter")
    shows(page, "#make .status", "10 in ")
    page.click("#tab-cost")
    shows(page, "#cost .finding", "NFE 16 per image")
    shows(page, "#cost .finding", "The sweep has no cell with these settings")


def test_tabs_are_reachable_by_keyboard(wide):
    wide.focus("#tab-make")
    for key, panel in [
        ("ArrowRight", "compare"), ("End", "cost"), ("ArrowRight", "make"), ("ArrowLeft", "cost"),
        ("Home", "make"),
    ]:  # fmt: skip
        wide.keyboard.press(key)
        assert wide.evaluate("document.activeElement.id") == f"tab-{panel}"
        assert wide.locator("[role=tabpanel]:visible").get_attribute("id") == panel


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
            httpx.post(f"{server.url}/playground/version", json={"version": 1}).raise_for_status()
            page.click("#make .main")
            shows(page, "#make .wrong", "another model serves now: its settings are loaded")
            shows(page, "#about", "version 1")
            assert page.locator("#version").input_value() == "1"
            make(page, 10)
            assert page.locator("#make .wrong").is_hidden()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
        assert "version 2 serves now\n" in server.log.read_text()


def test_the_guidance_interval_is_set_by_keyboard_and_lowers_nfe(page, here):
    low, high = (page.locator(f"#settings [name={end}]") for end in ("low", "high"))
    assert low.is_disabled()
    assert high.is_disabled()
    fill(page, num=1, steps=10, eta=0, guidance=2)
    shows(page, "#interval-note", "guided at 10 of 10 times: NFE 20 per image")
    for _ in range(40):
        high.press("ArrowLeft")
    for _ in range(30):
        low.press("ArrowRight")
    assert page.locator("#interval-ends").text_content() == "0.32 < σ/α ≤ 1"
    assert low.get_attribute("aria-valuetext") == "above σ/α 0.32"
    shows(page, "#interval-note", "instead of 20")
    low.press("End")  # no further than one below the other
    assert (low.input_value(), high.input_value()) == ("39", "40")
    low.press("Home")
    assert page.locator("#interval-ends").text_content() == "0 < σ/α ≤ 1"
    make(page, 1)
    chosen = SampleSettings(steps=10, guidance=2.0, guidance_interval=(0.0, 1.0))
    assert_offline(pixels_of(page.locator("#make li img").first), here / MODEL, chosen, [0])
    high.press("End")
    assert page.locator("#interval-ends").text_content() == "everywhere"
    shows(page, "#interval-note", "NFE 20 per image")
    fill(page, guidance=0)
    assert low.is_disabled()


def test_the_guide_of_the_best_cell_is_selected_and_may_be_left_out(browser, tmp_path):
    guide = small_model(tmp_path / "early.safetensors", seed=1)
    scores = scores_of(small_model(tmp_path / MODEL))
    guidance = {"guidance": 1.0, "guide": guide.name, "guide_sha256": read_artefact(guide).model_sha256}
    for cell in scores.cells.values():
        cell.card.update(guidance)
    write_scores_document(tmp_path / SCORES, scores)
    with ServerProcess(tmp_path, name="playground") as server, browser.new_context(viewport=WIDE) as context:
        page = opened(context, server)
        select = page.locator("#settings [name=guide]")
        assert select.input_value() == guide.name
        assert select.locator("option").all_text_contents() == ["–", guide.name]
        fill(page, num=1, steps=4, eta=0)
        made = []
        for value in (guide.name, ""):
            select.select_option(value)
            make(page, 1)
            made.append(pixels_of(page.locator("#make li img").first))
        fill(page, guidance=0)
        assert select.is_disabled()
        assert_offline(made[1], tmp_path / MODEL, SampleSettings(steps=4, guidance=1.0), [0])
        assert np.abs(made[0] - made[1]).max() > 1
        assert page.faults == []


def test_the_base_model_of_a_cascade_is_named(browser, tmp_path):
    base = small_model(tmp_path / "small.safetensors", image_size=4, attention_resolutions=())
    scores = scores_of(small_model(tmp_path / MODEL, low_res=4))
    cascade = {"base": '{"file":"small.safetensors"}', "base_sha256": read_artefact(base).model_sha256}
    for cell in scores.cells.values():
        cell.card.update(cascade, sampling_version=sampling_version(cascade))
    write_scores_document(tmp_path / SCORES, scores)
    with ServerProcess(tmp_path, name="playground") as server, browser.new_context(viewport=WIDE) as context:
        page = opened(context, server)
        shows(page, "#about", "; enlarges the images of small.safetensors.")
        fill(page, num=1, steps=2)
        make(page, 1)
        assert page.faults == []


def test_the_guidance_interval_is_set_by_mouse(wide):
    fill(wide, guidance=2)
    shows(wide, "#interval-note", "guided at")  # the preview of the cost may move the handles
    box = wide.locator("#settings .ends").bounding_box()
    middle = box["y"] + box["height"] / 2
    for start, end in ((box["x"] + 8, 0.25), (box["x"] + box["width"] - 8, 0.75)):
        wide.mouse.move(start, middle)
        wide.mouse.down()
        wide.mouse.move(box["x"] + end * box["width"], middle, steps=4)
        wide.mouse.up()
    low, high = (int(wide.locator(f"#settings [name={end}]").input_value()) for end in ("low", "high"))
    assert abs(low - 20) <= 3
    assert abs(high - 60) <= 3


def test_own_options_of_the_chosen_sampler_and_spacing_are_shown_and_change_the_images(page, here):
    own = page.locator("[data-own=sampler]")
    assert own.count() == 0, "ddim has none"
    page.select_option("#settings [name=sampler]", "ipndm")
    assert own.locator("input").evaluate_all("all => all.map(one => one.name)") == ["sampler_options.order"]
    own.locator("input").focus()
    shows(page, "#lesson", "The order of the Adams–Bashforth method; 1 is Euler's method.")
    fill(page, num=1, steps=4, **{"sampler_options.order": 5})
    page.click("#make .main")
    shows(page, "#make .wrong", "order: ")
    page.select_option("#settings [name=sampler]", "heun")
    assert own.locator("legend").text_content() == "Options of heun"
    page.select_option("#settings [name=spacing]", "karras")
    made = []
    for churn, rho in ((0, 7), (2, 7), (2, 3)):
        fill(page, **{"sampler_options.s_churn": churn, "spacing_options.rho": rho})
        make(page, 1)
        made.append(pixels_of(page.locator("#make li img").first))
        options = {"sampler_options": {"s_churn": churn}, "spacing_options": {"rho": rho}}
        settings = SampleSettings(sampler="heun", spacing="karras", steps=4, **options)
        assert_offline(made[-1], here / MODEL, settings, [0])
    assert np.abs(made[0] - made[1]).max() > 1
    assert np.abs(made[1] - made[2]).max() > 1


def test_a_model_of_a_continuous_process_has_steps_up_to_the_servers_limit(browser, tmp_path):
    spec = spec_of(out_channels=1)
    artefact = artefact_of(spec).model_copy(update={"process": EDMConfig(schedule="edm", sigma_data=0.5)})
    save_artefact(tmp_path / MODEL, network_of(spec).state_dict(), artefact)
    with ServerProcess(tmp_path, name="playground") as server, browser.new_context(viewport=WIDE) as context:
        page = opened(context, server)
        steps = page.locator("#settings [name=steps]")
        assert (steps.input_value(), steps.get_attribute("max")) == ("50", "1000")
        fill(page, num=1, steps=4)
        make(page, 1)
        assert page.faults == []


def test_the_focus_stays_when_a_request_is_stopped_and_the_focused_control_is_explained(wide):
    wide.focus("#settings [name=guidance]")
    assert "guidance_scale − 1" in wide.locator("#lesson").text_content()
    for steps, text in ((100, "stopped"), (4, "10 in ")):  # a stopped request leaves room for another
        fill(wide, steps=steps)
        wide.focus("#make .main")
        wide.keyboard.press("Enter")
        if text == "stopped":
            wide.focus("#make .stop")
            wide.keyboard.press("Enter")
        shows(wide, "#make .status", text)
        assert wide.evaluate("document.activeElement.className") == "main"
