"""The playground's settings in headless Chromium: guidance, its interval, and options of a sampler."""

import numpy as np
import pytest

from diffusion.layout import MODEL, SCORES
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.process.process_registry import EDMConfig
from diffusion.protocol.scores_document import write_scores_document
from diffusion.protocol.settings import SampleSettings
from tests.helpers.browser import NEEDS_CHROMIUM, WIDE
from tests.helpers.networks import artefact_of, network_of, spec_of
from tests.helpers.playground_page import fill, make, opened, pixels_of, shows
from tests.helpers.served_images import assert_offline
from tests.helpers.server_process import ServerProcess, scores_of, small_model

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]


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


def test_the_guidance_interval_is_set_by_mouse(wide):
    fill(wide, guidance=2)
    wide.wait_for_load_state("networkidle")  # the preview of the cost may move the handles
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


def test_own_options_of_a_sampler_and_a_spacing_change_the_images(page, here):
    fill(page, num=1, steps=4)
    page.select_option("#settings [name=sampler]", "heun")
    page.select_option("#settings [name=spacing]", "karras")
    made = []
    for churn, rho in ((0, 7), (2, 7), (2, 3)):
        fill(page, **{"sampler_options.s_churn": churn, "spacing_options.rho": rho})
        make(page, 1)
        made.append(pixels_of(page.locator("#make li img").first))
        own = {"sampler_options": {"s_churn": churn}, "spacing_options": {"rho": rho}}
        settings = SampleSettings(sampler="heun", spacing="karras", steps=4, **own)
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


def test_only_the_own_options_of_the_chosen_sampler_are_shown(wide):
    own = wide.locator("[data-own=sampler]")
    assert own.count() == 0, "ddim has none"
    wide.select_option("#settings [name=sampler]", "ipndm")
    assert own.locator("legend").text_content() == "Options of ipndm"
    assert own.locator("input").evaluate_all("all => all.map(one => one.name)") == ["sampler_options.order"]
    own.locator("input").focus()
    shows(wide, "#lesson", "The order of the Adams–Bashforth method; 1 is Euler's method.")
    fill(wide, **{"sampler_options.order": 5})
    wide.click("#make .main")
    shows(wide, "#make .wrong", "order: ")
    wide.select_option("#settings [name=sampler]", "unipc")
    assert own.locator("legend").text_content() == "Options of unipc"
    assert own.locator("select").input_value() == "bh2"
    make(wide, 10)


def test_the_focus_stays_when_a_request_is_stopped_and_the_focused_control_is_explained(wide):
    wide.focus("#settings [name=guidance]")
    assert "guidance_scale − 1" in wide.locator("#lesson").text_content()
    for field in wide.locator("#settings input:enabled, #settings select:enabled").all():
        field.focus()
        assert (
            field.evaluate("field => field.closest('[title]').title")
            == wide.locator("#lesson").text_content()
        )
    for steps, text in ((100, "stopped"), (4, "10 in ")):  # a stopped request leaves room for another
        fill(wide, steps=steps)
        wide.focus("#make .main")
        wide.keyboard.press("Enter")
        if text == "stopped":
            wide.focus("#make .stop")
            wide.keyboard.press("Enter")
        shows(wide, "#make .status", text)
        assert wide.evaluate("document.activeElement.className") == "main"
