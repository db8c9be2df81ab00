"""The report page: complete, self-contained, reproducible, readable in light, dark and print."""

import base64
import csv
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from diffusion.evaluate.features.reference_features import make_reference
from diffusion.evaluate.sweep_scores import write_scores
from diffusion.images.store import open_store, write_store
from diffusion.protocol.card import SHARES
from diffusion.protocol.grid import Cell
from diffusion.protocol.scores_document import ScoresDocument, read_scores
from diffusion.report.figures import CurvePoint, moving_average, score_curve
from diffusion.report.sample_pictures import nearest
from diffusion.report.score_tables import score_table
from diffusion.report.theme import DARK, LIGHT
from diffusion.report.training_curve import read_curve
from diffusion.report.write import page_with_seeds, read_inputs, write_report
from diffusion.system.checksums import add_checksum
from diffusion.system.errors import DiffctlError
from diffusion.system.files import write_json
from diffusion.train.loss_bands import BAND_NAMES
from tests.helpers.browser import NEEDS_CHROMIUM, PHONE, TEXTS, WIDE, contrast, hexadecimal
from tests.helpers.digits_sweep import make_config, score_sweep, write_cell, write_prepared, write_sweep
from tests.helpers.disks import make_room, memory_disk

VOID = {"meta", "img", "br", "link", "input", "hr"}
FACTS = {
    "ended": 1e9, "seconds": 754.2, "first_step": 1, "parameters": 831_234, "hardware": "a CPU, 2 threads",
    "commit": "0123456ab+",
}  # fmt: skip


class Page(HTMLParser):
    """What a page refers to and shows; fails on tags that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.ids, self.open, self.text = [], [], [], [], []
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.links += [attributes[name] for name in ("src", "href", "xlink:href") if name in attributes]
        if tag == "img":
            self.images.append(attributes)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Return (config, folder) with all inputs of a report."""
    root, config = tmp_path_factory.mktemp("sweep"), make_config()
    write_prepared(root / "prepared")
    make_reference(config.evaluate, root / "prepared", root / "reference")
    write_sweep(root / "samples", config)
    scores = score_sweep(config, root / "samples", root / "reference")
    write_scores(scores, root / "scores.json", root / "scores.csv")
    rows = (f"{step},{1 / step + 0.05},{1 / step + 0.05},0.1,0.5,0.002\n" for step in range(1, 101))
    (root / "loss.csv").write_text("step,loss,mse,vlb,grad_norm,lr\n" + "".join(rows))
    write_json(root / "run.json", add_checksum({"key": "k", "fingerprint": "f", "facts": FACTS}))
    return config, root


def inputs_of(config, root):
    names = ("samples", "scores.json", "prepared", "loss.csv", "run.json")
    return config, *(root / name for name in names)


def report(sweep, out):
    config, root = sweep
    return write_report(read_inputs(*inputs_of(config, root)), out)


@pytest.fixture(scope="module")
def written(sweep, tmp_path_factory):
    return report(sweep, tmp_path_factory.mktemp("out") / "report")


@pytest.fixture(scope="module")
def with_seeds(sweep, tmp_path_factory):
    """Return the page of the report with two other seeds in it."""
    config, root = sweep
    inputs = read_inputs(*inputs_of(config, root))
    trainings = ({"training": {"setting": "a" * 16, "seed": seed}} for seed in range(3))
    own, *others = (ScoresDocument(**{**dict(inputs.document), **training}) for training in trainings)
    path = tmp_path_factory.mktemp("with_seeds") / "page.html"
    path.write_text(page_with_seeds(replace(inputs, document=own), others), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(written):
    return Page(written.read_text(encoding="utf-8"))


@pytest.fixture
def own(sweep, tmp_path):
    config, root = sweep
    return config, shutil.copytree(root, tmp_path / "sweep")


def test_report_is_one_page_and_three_pictures(written):
    pictures = ("curve.png", "montage.png", "loss.png")
    assert {file.name for file in written.parent.iterdir()} == {"index.html", *pictures}
    assert all(min(Image.open(written.parent / name).size) > 200 for name in pictures)


def test_page_is_well_formed_and_self_contained(written, page):
    text = written.read_text(encoding="utf-8")
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert not re.search(r"https?:|@import", text)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {f"#{name}" for name in page.ids}


def test_pictures_have_alternative_text_and_the_colours_of_the_scheme(written, page):
    assert page.images
    assert all(image["alt"].strip() for image in page.images)
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) == 4
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)
    text = "".join(re.findall(r"<svg.*?</svg>", written.read_text(encoding="utf-8"), flags=re.DOTALL))
    assert "var(--line0)" in text
    assert not re.search(r"#[0-9a-f]{6}\b", text)


def test_page_shows_headline_scores_budgets_protocol_and_config(page):
    text = " ".join(" ".join(page.text).split()).replace("\xa0", " ")
    assert text.index("Of 6 cells, 50 steps, η = 0 is the best by KD") < text.index("samples a cell against")
    facts = ["2001-09-09 01:46 UTC", "0:12:34 h:min:s (from step 1)", "831,234", "a CPU, 2 threads"]
    facts += ["0123456ab, with uncommitted edits", "fd_effnet_lite0_64", "real, held out", "reference_digest"]
    facts += ["num_res_blocks", "5 to 9 5 steps, η = 0", "50 and more 50 steps, η = 0"]
    assert [words for words in facts if words not in text] == []


def test_page_without_intervals(own, tmp_path):
    config, root = own
    scores = json.loads((root / "scores.json").read_text())
    del scores["intervals"]
    for cell in scores["cells"].values():
        for name in [name for name in cell["scores"] if name.endswith(("_low", "_high"))]:
            del cell["scores"][name]
        del cell["errors"]
    for chosen in (scores["best"], *scores["front"]):
        chosen["optimism"] = None
    write_json(root / "scores.json", scores)
    text = report((config, root), tmp_path / "report").read_text(encoding="utf-8")
    assert "confidence interval" not in text
    assert "±" not in text
    assert 'class="best"' not in text


def test_value_without_an_interval_is_not_marked_best(sweep):
    """Precision, recall and coverage have no interval: their order may be chance."""
    _, root = sweep
    document = read_scores(root / "scores.json")
    table = score_table(document)
    marked = [any(row["entries"][place]["best"] for row in table["rows"]) for place in range(7)]
    wanted = dict.fromkeys(("FD", "excess", "KD"), True) | dict.fromkeys(SHARES, False)
    assert dict(zip(table["columns"], marked, strict=True)) == wanted
    del document.cells["steps5-eta0"].errors["fd_effnet_lite0_64"]
    table = score_table(document)
    assert not any(entry["best"] for row in table["rows"] for entry in row["entries"][:2])


def test_montage_shows_the_same_indices_of_every_cell(page, sweep):
    _, root = sweep
    cells = [image for image in page.images if image["alt"].startswith("Images 0 to 9")]
    assert len(cells) == 6
    sampled = open_store(root / "samples/steps5-eta0")
    np.testing.assert_array_equal(_embedded(cells[0])[:64:8, :64:8], sampled.images[0, :, :, 0])


def test_real_images_next_to_samples_have_their_classes(page, sweep):
    """Column i of a row of the montage has images of one class; a class's row has only its images."""
    test, best = open_store(sweep[1] / "prepared/test"), open_store(sweep[1] / "samples/steps50-eta0")
    (montage,) = [one for one in page.images if one["alt"].startswith("Held-out real images of the same")]
    first = test.images[np.flatnonzero(test.labels == best.labels[0])[0], :, :, 0]
    np.testing.assert_array_equal(_embedded(montage)[:64:8, :64:8], first)
    rows = [image for image in page.images if "held-out real images of class" in image["alt"]]
    assert len(rows) == len(set(best.labels.tolist()))
    last = test.images[np.flatnonzero(test.labels == max(best.labels))[0], :, :, 0]
    np.testing.assert_array_equal(_embedded(rows[-1])[:64:8, :64:8], last)


def _embedded(image):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))))


def test_report_is_reproduced_to_the_byte(sweep, written, tmp_path):
    again = report(sweep, tmp_path / "again")
    for file in written.parent.iterdir():
        assert file.read_bytes() == (again.parent / file.name).read_bytes()


def test_report_with_validation_losses_and_without_labels_or_floor(own, tmp_path):
    config, root = own
    for folder in [*(root / "samples").iterdir(), root / "prepared/train", root / "prepared/test"]:
        store = open_store(folder)
        write_store(folder, np.array(store.images), None, {**store.meta, "classes": [], "counts": []})
    scores = json.loads((root / "scores.json").read_text())
    del scores["reference"]["floor"]
    for cell in scores["cells"].values():
        del cell["scores"]["floor"], cell["scores"]["excess"]
    write_json(root / "scores.json", scores)
    write_validation_losses(root / "loss.csv")
    text = report((config, root), tmp_path / "report").read_text(encoding="utf-8")
    page = Page(text)
    assert not [image for image in page.images if "of class" in image["alt"]]
    assert {"hybrid loss", "kernel distance, KD"} <= set(page.text), "labels of axes"
    assert "0.42, least 0.4 after step 15" in text
    assert "; validation, EMA 0.42; validation, raw weights 0.46" in text


@pytest.mark.parametrize("text", ["", "step,loss\n", "step,other\n1,2\n", "step,loss\n1\n"])
def test_damaged_loss_curve_is_named(tmp_path, text):
    (tmp_path / "loss.csv").write_text(text)
    with pytest.raises(DiffctlError, match=r"loss\.csv"):
        read_curve(tmp_path / "loss.csv")


def write_validation_losses(path):
    names = ["val_loss", "val_mse", "val_vlb", "val_raw_loss", f"val_{BAND_NAMES[0]}", f"val_{BAND_NAMES[3]}"]
    rows = [",".join(["step", "loss", *names])]
    rows += ["10,0.5,nan,nan,nan,nan,nan,nan", "15,nan,0.4,0.3,0.1,0.45,0.9,0.1"]
    rows += ["20,0.3,nan,nan,nan,nan,nan,nan", "30,0.2,0.42,0.31,0.11,0.46,0.8,0.2"]
    path.write_text("\n".join(rows) + "\n")


def test_validation_losses_are_read(tmp_path):
    write_validation_losses(tmp_path / "loss.csv")
    curve = read_curve(tmp_path / "loss.csv")
    assert (curve.steps.tolist(), curve.loss.tolist()) == ([10, 20, 30], [0.5, 0.3, 0.2])
    assert curve.val_steps.tolist() == [15, 30]
    assert {label: values.tolist() for label, values in curve.lines().items()} == {
        "validation, EMA": [0.4, 0.42],
        "validation, raw weights": [0.45, 0.46],
    }
    assert dict(curve.facts()) == {
        "validation loss, EMA": "0.42, least 0.4 after step 15",
        "validation loss, raw weights": "0.46",
        "validation mse and vlb, EMA": "0.31, 0.11",
        "validation loss by band of the log-SNR, EMA": "0.8, 0.2",
    }


def test_older_curves_have_losses_by_quarter_of_t(tmp_path):
    (tmp_path / "loss.csv").write_text("step,loss,val_loss,val_loss_q0,val_loss_q3\n10,0.5,0.4,0.9,0.1\n")
    assert ("validation loss by quarter of t, EMA", "0.9, 0.1") in read_curve(tmp_path / "loss.csv").facts()


def test_scores_of_other_samples_are_refused(own, tmp_path):
    config, root = own
    smaller = config.model_copy(update={"sweep": config.sweep.model_copy(update={"steps": (5, 10)})})
    with pytest.raises(DiffctlError, match="have different cells"):
        report((smaller, root), tmp_path / "report")
    for steps in (5, 10, 50):
        for eta in (0.0, 1.0):
            cell = Cell(steps, eta)
            write_cell(root / "samples" / cell.name, config, cell, model_sha256="b" * 64)
    with pytest.raises(DiffctlError, match=r"other samples \(model_sha256"):
        report((config, root), tmp_path / "report")


SETS = arrays(np.uint8, st.tuples(st.integers(1, 6), st.just(3), st.just(3), st.integers(1, 3)))


@settings(max_examples=50)
@given(SETS, st.data())
def test_nearest_image_equals_brute_force(train, data):
    images = data.draw(arrays(np.uint8, (3, *train.shape[1:])))
    _, distances = nearest(images, train)
    rms = np.sqrt(((images[:, None].astype(float) - train[None]) ** 2).mean(axis=(2, 3, 4)))
    np.testing.assert_allclose(distances, rms.min(axis=1), atol=1e-3)


def test_moving_average_skips_nan():
    line = np.linspace(0, 1, 200)
    np.testing.assert_allclose(moving_average(line)[10:-10], line[10:-10])
    line[50] = np.nan
    assert np.isfinite(moving_average(line)).all()
    assert moving_average(np.array([3.0])).tolist() == [3.0]


@pytest.mark.parametrize(
    ("values", "real", "scale"),
    [
        ((0.5, 1.7), 0.0004, "linear"),
        ((0.1, 1.7), 0.0004, "log"),
        ((-0.1, 9), 0.0004, "linear"),
        ((0.1, 1.7), -0.01, "linear"),
    ],
)
def test_only_the_scores_decide_on_a_log_axis(values, real, scale):
    """Real images may be a thousand times better, which would compress all lines."""
    points = [CurvePoint(steps, "η = 0", value) for steps, value in zip((5, 50), values, strict=True)]
    (axes,) = score_curve(points, "KD", (real, "real")).axes
    assert axes.get_yscale() == scale


def test_full_disk_keeps_the_old_report(sweep, mount, tmp_path):
    disk = mount(tmp_path / "disk", *memory_disk("128k"))
    out = disk / "report"
    out.mkdir()
    (out / "index.html").write_text("before")
    with pytest.raises(OSError, match="No space left on device") as error:
        report(sweep, out)
    assert error.value.filename == str(out)
    assert [path.relative_to(disk) for path in disk.rglob("*")] == [Path("report"), Path("report/index.html")]
    assert (out / "index.html").read_text() == "before"
    make_room(disk)
    report(sweep, out)
    assert "<html" in (out / "index.html").read_text()
    assert [path.name for path in disk.iterdir()] == ["report"]


@pytest.mark.slow
@pytest.mark.filterwarnings("error::UserWarning")  # matplotlib warns if names leave no room
def test_further_axes_and_spaces_have_lines_and_columns(own, tmp_path):
    _, root = own
    sweep = {"steps": [5, 10], "eta": [0.0, 1.0], "sampler": ["ddim", "dpm-solver++"]}
    config = make_config(sweep=sweep, evaluate={"extra_extractors": ["effnet-lite0-96"]})
    shutil.rmtree(root / "samples")
    write_sweep(root / "samples", config)
    make_reference(config.evaluate, root / "prepared", root / "reference")
    document = score_sweep(config, root / "samples", root / "reference")
    write_scores(document, root / "scores.json", root / "scores.csv")
    with open(root / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["line"] for row in rows} == {"η = 0, ddim", "η = 1, ddim", "η = 0, dpm-solver++"}
    text = report((config, root), tmp_path / "report").read_text(encoding="utf-8")
    assert Page(text).open == []
    assert text.count("<svg") == 6
    table = text[text.index("<b>Table 2.") :]
    table = table[: table.index("</table>")]
    groups = re.findall(r'<th scope="colgroup" colspan="3">([^<]*)</th>', table)
    headings = re.findall(r'<th scope="col">([^<]*)</th>', table)
    assert groups == ["effnet-lite0-64", "effnet-lite0-96"]
    assert headings == ["steps", "η", "sampler", *["FD", "excess", "KD"] * 2]
    assert table.count("dpm-solver++") == 2


@pytest.mark.slow
@NEEDS_CHROMIUM
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


def shown_in(browser, page: Path, width: int, **media):
    """Open the page with these media settings."""
    opened = browser.new_page(viewport={"width": width, "height": 1100})
    opened.emulate_media(**media)
    opened.goto(page.as_uri())
    return opened


def test_page_with_other_seeds_is_otherwise_the_same(written, with_seeds):
    text, plain = with_seeds.read_text(encoding="utf-8"), written.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    begin, end = text.index("<h2>Other seeds</h2>"), text.index("<h2>Quality for its cost</h2>")
    assert text[:begin].strip() == plain[: plain.index("<h2>Quality for its cost</h2>")].strip()
    section = text[begin:end]
    assert "This training has seed 0. MLflow has the scores of 2 more" in section
    assert "<td>1 of 3</td>" in section


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize(
    ("scheme", "colours", "size"), [("light", LIGHT, WIDE), ("dark", DARK, PHONE)], ids=["wide", "phone"]
)
def test_page_fits_and_text_has_contrast_in_both_schemes(with_seeds, browser, scheme, colours, size):
    width = size["width"]
    page = shown_in(browser, with_seeds, width, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(folded => folded.open = true)")
    texts = page.evaluate(TEXTS)
    assert {hexadecimal(ground) for _, _, ground in texts} <= {colours["paper"], colours["panel"]}
    seen = {(text, hexadecimal(ink), hexadecimal(ground)) for text, ink, ground in texts}
    assert [one for one in seen if contrast(*one[1:]) < 4.5] == []
    drawn = page.eval_on_selector_all("svg path", "found => found.map(one => getComputedStyle(one).stroke)")
    assert {colours["line0"], colours["line1"]} <= {hexadecimal(one) for one in drawn if one != "none"}
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for caption in page.locator("figcaption, caption").all():
        assert caption.bounding_box()["x"] + caption.bounding_box()["width"] <= width
    page.close()


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_print_is_light_unfolded_and_complete(written, browser):
    width = 718  # CSS pixels of A4 between margins of a centimetre
    page = shown_in(browser, written, width, media="print", color_scheme="dark")
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
