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

from diffusion.evaluate.evaluate import write_scores
from diffusion.evaluate.features.reference import make_reference
from diffusion.images.store import open_store, write_store
from diffusion.protocol.extractors import INCEPTION, extractor_spec
from diffusion.protocol.grid import Cell
from diffusion.protocol.scores import ScoresDocument, read_scores
from diffusion.protocol.scoring import SHARES
from diffusion.report import write_report
from diffusion.report.curve import read_curve
from diffusion.report.figures import Point, moving_average, score_curve
from diffusion.report.neighbours import nearest
from diffusion.report.tables import decimals, number, protocol_table, score_table
from diffusion.report.theme import DARK, LIGHT
from diffusion.report.write import page_beside_seeds, read_inputs
from diffusion.system.errors import DiffctlError
from diffusion.system.files import write_json
from tests.helpers.browser import NEEDS_CHROMIUM, PHONE, TEXTS, WIDE, hexadecimal
from tests.helpers.colours import contrast
from tests.helpers.digits_sweep import make_config, score_sweep, write_cell, write_prepared, write_sweep
from tests.helpers.disks import make_room, memory_disk

VOID = {"meta", "img", "br", "link", "input", "hr"}
SVG_VOID = {"path", "use", "rect", "circle", "line"}


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


def write_loss(path, steps=100):
    rows = [(step, 1 / step + 0.05) for step in range(1, steps + 1)]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", "mse", "vlb", "grad_norm", "lr"])
        writer.writerows((step, loss, loss, 0.1, 0.5, 0.002) for step, loss in rows)
    return path


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """(config, folder) with everything that a report is made of."""
    root, config = tmp_path_factory.mktemp("sweep"), make_config()
    write_prepared(root / "prepared")
    make_reference(config.evaluate, root / "prepared", root / "reference")
    write_sweep(root / "samples", config)
    scores = score_sweep(config, root / "samples", root / "reference")
    write_scores(scores, root / "scores.json", root / "scores.csv")
    write_loss(root / "loss.csv")
    return config, root


def report(sweep, out):
    config, root = sweep
    return write_report(
        config, root / "samples", root / "scores.json", root / "prepared", root / "loss.csv", out
    )


@pytest.fixture(scope="module")
def written(sweep, tmp_path_factory):
    return report(sweep, tmp_path_factory.mktemp("out") / "report")


def of_seed(document, seed):
    """The document as of a training with this seed."""
    return ScoresDocument(**{**dict(document), "training": {"setting": "a" * 16, "seed": seed}})


@pytest.fixture(scope="module")
def beside(sweep, tmp_path_factory):
    """The page of the report with two other seeds in it."""
    config, root = sweep
    inputs = read_inputs(config, root / "samples", root / "scores.json", root / "prepared", root / "loss.csv")
    own, *others = (of_seed(inputs.document, seed) for seed in range(3))
    path = tmp_path_factory.mktemp("beside") / "page.html"
    path.write_text(page_beside_seeds(replace(inputs, document=own), others), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(written):
    return Page(written.read_text(encoding="utf-8"))


@pytest.fixture
def own(sweep, tmp_path):
    config, root = sweep
    return config, shutil.copytree(root, tmp_path / "sweep")


def test_it_is_one_page_and_three_pictures(written):
    assert {file.name for file in written.parent.iterdir()} == {
        "index.html",
        "curve.png",
        "montage.png",
        "loss.png",
    }
    for name in ("curve", "montage", "loss"):
        picture = Image.open(written.parent / f"{name}.png")
        assert min(picture.size) > 200


def test_it_refers_to_nothing_outside(written, page):
    text = written.read_text(encoding="utf-8")
    assert not re.search(r"https?:", text)
    assert "@import" not in text
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {f"#{name}" for name in page.ids}


def test_ids_are_unique_and_every_tag_is_closed(page):
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)


def test_every_picture_speaks(page):
    assert page.images
    assert all(image["alt"].strip() for image in page.images)
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) == 4
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)


def test_it_shows_scores_protocol_and_config(page, sweep):
    text = " ".join(" ".join(page.text).split())
    for words in (
        "fd_effnet_lite0_64",
        "real, held out",
        "reference_digest",
        "model_sha256",
        "num_res_blocks",
    ):
        assert words in text
    assert "50 steps, η = 0" in text.replace("\xa0", " ")
    assert "cannot be compared with Inception's FID" in text


def test_it_recommends_a_cell_for_each_budget(page, sweep):
    text = " ".join(" ".join(page.text).split()).replace("\xa0", " ")
    assert "5 to 9 5 steps, η = 0" in text
    assert "10 to 49 10 steps, η = 0" in text
    assert "50 and more 50 steps, η = 0" in text
    assert "memorisation is" in text
    assert "Bands are 95% confidence intervals" in text


def test_without_intervals_it_says_nothing_of_them(own, tmp_path):
    config, root = own
    scores = json.loads((root / "scores.json").read_text())
    del scores["intervals"]
    for cell in scores["cells"].values():
        cell["scores"] = {
            name: value for name, value in cell["scores"].items() if not name.endswith(("_low", "_high"))
        }
        del cell["errors"]
    for chosen in (scores["best"], *scores["front"]):
        chosen["optimism"] = None
    write_json(root / "scores.json", scores)
    text = report((config, root), tmp_path / "report").read_text(encoding="utf-8")
    assert "confidence" not in text
    assert "±" not in text
    assert 'class="best"' not in text


def test_a_value_without_an_interval_is_not_marked_the_best(sweep):
    """Precision, recall and coverage have none: which cell leads there may be chance."""
    _, root = sweep
    document = read_scores(root / "scores.json")
    table = score_table(document, extractor_spec("effnet-lite0-64"))
    marked = [any(row["entries"][place]["best"] for row in table["rows"]) for place in range(7)]
    assert dict(zip(table["columns"], marked, strict=True)) == {
        "FD": True,
        "excess": True,
        "KD": True,
        **dict.fromkeys(SHARES, False),
    }
    del document.cells["steps5-eta0"].errors["fd_effnet_lite0_64"]
    table = score_table(document, extractor_spec("effnet-lite0-64"))
    assert not any(entry["best"] for row in table["rows"] for entry in row["entries"][:2])


def test_colours_follow_the_readers_scheme(written):
    text = written.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--line0)" in drawings
    assert not re.search(r"#[0-9a-f]{6}\b", drawings)


def test_the_montage_shows_the_same_indices_of_every_cell(page, sweep):
    _, root = sweep
    cells = [image for image in page.images if image["alt"].startswith("Images 0 to 9")]
    assert len(cells) == 6
    embedded = Image.open(io.BytesIO(base64.b64decode(cells[0]["src"].split(",")[1])))
    first = open_store(root / "samples/steps5-eta0").images[0, :, :, 0]
    np.testing.assert_array_equal(np.asarray(embedded)[:64:8, :64:8], first)


def test_equal_inputs_give_equal_bytes(sweep, written, tmp_path):
    again = report(sweep, tmp_path / "again")
    for file in written.parent.iterdir():
        assert file.read_bytes() == (again.parent / file.name).read_bytes()


def test_an_old_report_is_replaced(sweep, tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report/old.png").write_bytes(b"")
    report(sweep, tmp_path / "report")
    assert not (tmp_path / "report/old.png").exists()


def test_class_names_are_escaped(own, tmp_path):
    config, root = own
    for cell in (root / "samples").iterdir():
        store = open_store(cell)
        meta = {**store.meta, "classes": ["<script>alert(1)</script>", *store.meta["classes"][1:]]}
        write_store(cell, np.array(store.images), store.labels, meta)
    text = report((config, root), tmp_path / "report").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_a_sweep_without_labels_or_floor_has_its_report(own, tmp_path):
    config, root = own
    for folder in [*(root / "samples").iterdir(), root / "prepared/train", root / "prepared/test"]:
        store = open_store(folder)
        write_store(folder, np.array(store.images), None, {**store.meta, "classes": [], "counts": []})
    scores = json.loads((root / "scores.json").read_text())
    del scores["reference"]["floor"]
    for cell in scores["cells"].values():
        del cell["scores"]["floor"], cell["scores"]["excess"]
    write_json(root / "scores.json", scores)
    page = Page(report((config, root), tmp_path / "report").read_text(encoding="utf-8"))
    assert not [image for image in page.images if "of class" in image["alt"]]


def test_inceptions_scores_are_called_fid_kid_and_is(own, tmp_path):
    config, root = own
    ours = extractor_spec("effnet-lite0-64")
    names = {
        ours.distance: "fid",
        ours.kernel_distance: "kid",
        ours.score: "is",
        **{ours.named(share): share for share in SHARES},
        ours.name: INCEPTION.name,
    }
    text = (root / "scores.json").read_text()
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf'"{name}(_std|_low|_high|_inf)?"', rf'"{names[name]}\1"', text)
    (root / "scores.json").write_text(text)
    shown = report((config, root), tmp_path / "report").read_text(encoding="utf-8")
    headings = re.findall(r'<th scope="col">([^<]*)</th>', shown)
    assert headings[:7] == ["steps", "η", "FID", "excess", "KID", "precision", "recall"]
    assert headings[7:10] == ["density", "coverage", "IS"]
    assert "cannot be compared" not in shown


def test_missing_inputs_are_named(own, tmp_path):
    config, root = own
    (root / "loss.csv").unlink()
    with pytest.raises(DiffctlError, match="no loss curve at"):
        report((config, root), tmp_path / "report")
    (root / "scores.json").unlink()
    with pytest.raises(DiffctlError, match="no scores at"):
        report((config, root), tmp_path / "report")
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("text", ["", "step,loss\n", "step,other\n1,2\n", "step,loss\n1\n"])
def test_a_damaged_loss_curve_is_named(own, tmp_path, text):
    config, root = own
    (root / "loss.csv").write_text(text)
    with pytest.raises(DiffctlError, match=r"loss\.csv"):
        report((config, root), tmp_path / "report")


def test_held_out_losses_stand_beside_the_trainings_own(own, tmp_path):
    config, root = own
    rows = ["step,loss,heldout_loss,heldout_mse,heldout_vlb,heldout_raw_loss,heldout_loss_q0,heldout_loss_q3"]
    rows += [
        "10,0.5,nan,nan,nan,nan,nan,nan",
        "15,nan,0.4,0.3,0.1,0.45,0.9,0.1",
        "20,0.3,nan,nan,nan,nan,nan,nan",
    ]
    rows += ["30,0.2,0.42,0.31,0.11,0.46,0.8,0.2"]
    (root / "loss.csv").write_text("\n".join(rows) + "\n")
    curve = read_curve(root / "loss.csv")
    assert (curve.steps.tolist(), curve.loss.tolist()) == ([10, 20, 30], [0.5, 0.3, 0.2])
    assert curve.heldout_steps.tolist() == [15, 30]
    assert {label: values.tolist() for label, values in curve.lines().items()} == {
        "held out, EMA": [0.4, 0.42],
        "held out, raw weights": [0.45, 0.46],
    }
    assert curve.facts() == [
        ("held-out loss, EMA", "0.42, least 0.4 after step 15"),
        ("held-out loss, raw weights", "0.46"),
        ("held-out mse and vlb, EMA", "0.31, 0.11"),
        ("held-out loss by quarter of t, EMA", "0.8, 0.2"),
    ]
    page = report((config, root), tmp_path / "report").read_text()
    assert "0.42, least 0.4 after step 15" in page
    assert "; held out, EMA 0.42; held out, raw weights 0.46" in page


def test_a_missing_cell_fails_the_report(own, tmp_path):
    config, root = own
    shutil.rmtree(root / "samples/steps50-eta1")
    with pytest.raises(DiffctlError, match="steps50-eta1"):
        report((config, root), tmp_path / "report")


def test_scores_of_another_grid_or_of_other_samples_are_refused(own, tmp_path):
    config, root = own
    smaller = config.model_copy(update={"sweep": config.sweep.model_copy(update={"steps": (5, 10)})})
    with pytest.raises(DiffctlError, match="do not have the same cells"):
        report((smaller, root), tmp_path / "report")
    for steps in (5, 10, 50):
        for eta in (0.0, 1.0):
            cell = Cell(steps, eta)
            write_cell(root / "samples" / cell.name, config, cell, model_sha256="b" * 64)
    with pytest.raises(DiffctlError, match=r"other samples \(model_sha256"):
        report((config, root), tmp_path / "report")


@pytest.mark.slow
@pytest.mark.filterwarnings("error::UserWarning")  # matplotlib says so when names leave no room
def test_a_richer_grid_has_a_line_and_a_column_for_its_axes(own, tmp_path):
    _, root = own
    config = make_config(sweep={"steps": [5, 10], "eta": [0.0, 1.0], "sampler": ["ddim", "dpm-solver++"]})
    shutil.rmtree(root / "samples")
    write_sweep(root / "samples", config)
    document = score_sweep(config, root / "samples", root / "reference")
    write_scores(document, root / "scores.json", root / "scores.csv")
    with open(root / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["line"] for row in rows} == {"η = 0, ddim", "η = 1, ddim", "η = 0, dpm-solver++"}
    assert {(row["sampler"], row["eta"]) for row in rows if "dpm" in row["cell"]} == {("dpm-solver++", "0.0")}
    page = Page(report((config, root), tmp_path / "report").read_text())
    text = " ".join(page.text)
    assert text.count("dpm-solver++") >= 2 + 2 + 1  # the curves' legends, the table, the montage
    assert "sampler" in text
    assert len([image for image in page.images if image["alt"].startswith("Images 0 to")]) == 6


SETS = arrays(np.uint8, st.tuples(st.integers(1, 6), st.just(3), st.just(3), st.integers(1, 3)))


@settings(deadline=None, max_examples=50)
@given(SETS, st.data())
def test_the_nearest_image_is_the_brute_force_one(train, data):
    images = data.draw(arrays(np.uint8, (3, *train.shape[1:])))
    found = nearest(images, train)
    rms = np.sqrt(((images[:, None].astype(float) - train[None]) ** 2).mean(axis=(2, 3, 4)))
    np.testing.assert_allclose(found.distances, rms.min(axis=1), atol=1e-3)


def test_a_copy_is_at_distance_zero():
    train = np.random.default_rng(0).integers(0, 256, (5000, 8, 8, 3), dtype=np.uint8)
    found = nearest(train[[3, 4999]], train)
    assert found.rows.tolist() == [3, 4999]
    assert found.distances.tolist() == [0, 0]


def test_a_moving_average_keeps_a_line_and_leaves_out_what_is_not_finite():
    line = np.linspace(0, 1, 200)
    np.testing.assert_allclose(moving_average(line)[10:-10], line[10:-10])
    line[50] = np.nan
    assert np.isfinite(moving_average(line)).all()
    assert moving_average(np.array([3.0])).tolist() == [3.0]


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [(1234.56, 1, "1,234.6"), (-0.5, 1, "−0.5"), (-0.001, 2, "0.00"), (0.0, 1, "0.0")],
)
def test_numbers_are_written_for_people(value, places, text):
    assert number(value, places) == text


@pytest.mark.parametrize(("values", "places"), [([771.0, 5], 1), ([12345.0], 0), ([0.0123], 5), ([], 1)])
def test_a_column_has_about_four_digits(values, places):
    assert decimals(values) == places


def test_the_protocol_shows_every_field_and_every_value():
    groups = protocol_table([{"steps": 50, "seed": 0, "new": True}, {"steps": 5, "seed": 0, "new": True}])
    fields = {field["name"]: field["value"] for group in groups for field in group["fields"]}
    assert fields == {"steps": "5, 50", "seed": "0", "new": "yes"}


@pytest.mark.parametrize(
    ("values", "real", "scale"),
    [
        ((0.5, 1.7), 0.0004, "linear"),
        ((0.1, 1.7), 0.0004, "log"),
        ((-0.1, 9), 0.0004, "linear"),
        ((0.1, 1.7), -0.01, "linear"),
    ],
)
def test_the_scores_alone_decide_on_a_logarithmic_axis(values, real, scale):
    """Real images may be a thousand times better, which would press all lines together."""
    points = [Point(steps, "η = 0", value) for steps, value in zip((5, 50), values, strict=True)]
    (axes,) = score_curve(points, "KD", (real, "real")).axes
    assert axes.get_yscale() == scale


def test_a_disk_that_is_full_leaves_the_report_before(sweep, mount, tmp_path):
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
def test_two_feature_spaces_stand_side_by_side(own, tmp_path):
    _, root = own
    config = make_config(sweep={"steps": [5, 50], "eta": [0.0]}, evaluate={"also": ["effnet-lite0-96"]})
    shutil.rmtree(root / "samples")
    write_sweep(root / "samples", config)
    make_reference(config.evaluate, root / "prepared", root / "reference")
    document = score_sweep(config, root / "samples", root / "reference")
    write_scores(document, root / "scores.json", root / "scores.csv")
    text = report((config, root), tmp_path / "report").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert text.count("<svg") == 6
    table = text[text.index("<b>Table 2.") :]
    table = table[: table.index("</table>")]
    groups = re.findall(r'<th scope="colgroup" colspan="3">([^<]*)</th>', table)
    assert groups == ["effnet-lite0-64", "effnet-lite0-96"]
    assert re.findall(r'<th scope="col">([^<]*)</th>', table) == ["steps", "η", *["FD", "excess", "KD"] * 2]
    rows = [re.findall(r"<td[^>]*>([^<]*)", row) for row in table.split("<tr")[3:]]
    assert [len(row) for row in rows] == [6, 7, 7]
    cell = document.cells["steps5-eta0"]
    for place, scores in ((1, cell.scores), (4, cell.spaces["effnet-lite0-96"].scores)):
        shown = float(re.sub(r"[^0-9.]", "", rows[1][place]))
        assert shown == pytest.approx(next(v for k, v in scores.items() if k.startswith("fd_")), rel=1e-2)
    assert table.count('class="best chosen"') + table.count('class=" chosen"') == 6
    words = " ".join(" ".join(page.text).split()).replace("\xa0", " ")
    assert "to effnet-lite0-64 (by KD), 50 steps, η = 0 to effnet-lite0-96 (by KD)." in words


def test_it_begins_with_what_was_found_and_folds_what_is_long(page):
    text = " ".join(" ".join(page.text).split()).replace("\xa0", " ")
    assert text.index("Of 6 cells, 50 steps, η = 0 is the best by KD") < text.index("samples a cell against")
    assert [attributes for tag, attributes in page.tags if tag == "details"] == [{}, {}]  # closed


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_a_cell_of_the_montage_enlarges_and_the_page_fits(written, browser, size):
    page = browser.new_page(viewport=size)
    page.goto(written.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    cell = page.locator(".montage img").first
    before = cell.bounding_box()["width"]
    cell.focus()
    assert cell.bounding_box()["width"] > 1.5 * before
    page.keyboard.press("Tab")
    assert cell.bounding_box()["width"] == before
    page.close()


def shown_in(browser, page: Path, width: int, **media):
    """The page where it is shown so: on a dark screen, or on paper."""
    opened = browser.new_page(viewport={"width": width, "height": 1100})
    opened.emulate_media(**media)
    opened.goto(page.as_uri())
    return opened


def test_other_seeds_are_on_a_page_of_their_own_which_is_otherwise_the_same(written, beside):
    said, plain = beside.read_text(encoding="utf-8"), written.read_text(encoding="utf-8")
    page = Page(said)
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert "Other seeds" not in plain
    begin, end = said.index("<h2>Other seeds</h2>"), said.index("<h2>Quality for its cost</h2>")
    assert said[:begin].strip() == plain[: plain.index("<h2>Quality for its cost</h2>")].strip()
    section = said[begin:end]
    assert "This training is of seed 0. MLflow has the scores of 2 more" in section
    assert "<td>1 of 3</td>" in section


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("width", [WIDE["width"], PHONE["width"]], ids=["wide", "phone"])
@pytest.mark.parametrize(("scheme", "colours"), [("light", LIGHT), ("dark", DARK)], ids=["light", "dark"])
@pytest.mark.parametrize("which", ["written", "beside"])
def test_every_word_can_be_read_in_either_scheme(request, which, browser, scheme, colours, width):
    page = shown_in(browser, request.getfixturevalue(which), width, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(folded => folded.open = true)")
    texts = page.evaluate(TEXTS)
    assert {hexadecimal(ground) for _, _, ground in texts} <= {colours["paper"], colours["panel"]}
    faint = [
        (text, ink) for text, ink, ground in texts if contrast(hexadecimal(ink), hexadecimal(ground)) < 4.5
    ]
    assert faint == []
    drawn = page.eval_on_selector_all("svg path", "found => found.map(one => getComputedStyle(one).stroke)")
    assert {colours["line0"], colours["line1"]} <= {hexadecimal(one) for one in drawn if one != "none"}
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for caption in page.locator("figcaption, caption").all():
        assert caption.bounding_box()["x"] + caption.bounding_box()["width"] <= width
    page.close()


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_on_paper_it_is_light_unfolded_and_whole(written, browser):
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
    for lost in (beyond, cut):
        script = f"all => all.filter(one => {lost}).map(one => one.outerHTML)"
        assert page.eval_on_selector_all("main *", script) == []
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()
