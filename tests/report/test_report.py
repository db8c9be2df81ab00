"""The report page: complete, self-contained, reproducible, and its scores are of its samples."""

import base64
import csv
import io
import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diffusion.evaluate.references import make_reference
from diffusion.evaluate.sweep_scores import write_scores
from diffusion.images.store import open_store, write_store
from diffusion.layout import LOSS_CURVE, PREPARED, REFERENCE, RUN, SAMPLES, SCORE_CURVES, SCORES
from diffusion.protocol.card import SHARES
from diffusion.protocol.grid import Cell
from diffusion.protocol.scores_document import read_scores
from diffusion.report.sample_pictures import class_rows, real_images
from diffusion.report.score_tables import score_table
from diffusion.report.write import page_with_seeds
from diffusion.system.checksums import add_checksum
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_json
from tests.helpers.digits_sweep import make_config, score_sweep, write_cell, write_sweep
from tests.helpers.disks import make_room
from tests.helpers.report_page import Page, inputs_of, report, write_validation_losses
from tests.report.conftest import FACTS


@pytest.fixture(scope="module")
def page(written):
    return Page(written.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_report_is_one_page_and_three_pictures_reproducible_to_the_byte(sweep, written, tmp_path):
    pictures = ("curve.png", "montage.png", "loss.png")
    assert {file.name for file in written.parent.iterdir()} == {"index.html", *pictures}
    assert all(min(Image.open(written.parent / name).size) > 200 for name in pictures)
    again = report(sweep, tmp_path / "again")
    for file in written.parent.iterdir():
        assert file.read_bytes() == (again.parent / file.name).read_bytes()


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


def test_value_without_an_interval_is_not_marked_best(sweep):
    """Precision, recall and coverage have no interval: their order may be chance."""
    _, root = sweep
    document = read_scores(root / SCORES)
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
    sampled = open_store(root / SAMPLES / "steps5-eta0")
    np.testing.assert_array_equal(_embedded(cells[0])[:64:8, :64:8], sampled.images[0, :, :, 0])


def test_row_of_the_montage_without_a_cell_keeps_its_columns(sweep):
    """A grid has no cell of η = 1 at one step, where η has no effect."""
    inputs = inputs_of(*sweep)
    cells = {cell: store for cell, store in inputs.cells.items() if cell.name != "steps5-eta1"}
    text = page_with_seeds(replace(inputs, cells=cells), ())
    row = text[text.index('<th scope="row">η = 1</th>\n<td>') :]
    shown = re.findall(r"<td></td>|Images 0 to 9 sampled in \d+", row[: row.index("</tr>")])
    assert shown == ["<td></td>", *(f"Images 0 to 9 sampled in {steps}" for steps in (10, 50))]


def test_real_images_next_to_samples_have_their_classes(page, sweep):
    """Column i of a row of the montage has images of one class; a class's row has only its images."""
    test, best = open_store(sweep[1] / PREPARED / "test"), open_store(sweep[1] / SAMPLES / "steps50-eta0")
    (montage,) = [one for one in page.images if one["alt"].startswith("Held-out real images of the same")]
    first = test.images[np.flatnonzero(test.labels == best.labels[0])[0], :, :, 0]
    np.testing.assert_array_equal(_embedded(montage)[:64:8, :64:8], first)
    rows = [image for image in page.images if "held-out real images of class" in image["alt"]]
    assert len(rows) == len(set(best.labels.tolist()))
    last = test.images[np.flatnonzero(test.labels == max(best.labels))[0], :, :, 0]
    np.testing.assert_array_equal(_embedded(rows[-1])[:64:8, :64:8], last)


def test_real_images_of_a_small_class_repeat_and_of_an_empty_one_are_white(tmp_path):
    images = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    store = write_store(tmp_path / "x", images, np.array([0, 0, 1]), {"classes": ["a", "b", "c"]})
    found = real_images(store, [0, 1, 2, 0, 1, 2, 0, 1], 7)
    assert found[:, 0, 0, 0].tolist() == [0, 2, 255, 1, 2, 255, 0]
    assert found.shape == (7, 8, 8, 1)


def test_every_class_has_a_row_and_the_first_hundred_have_pictures(tmp_path):
    labels, names = np.repeat(np.arange(120), 2), [f"class {number}" for number in range(120)]
    store = write_store(tmp_path / "x", np.zeros((240, 8, 8, 3), np.uint8), labels, {"classes": names})
    rows = class_rows(store, store, names)
    assert [row["name"] for row in rows] == names
    assert [row.get("count") for row in rows] == [2] * 100 + [None] * 20


def test_column_of_excess_has_no_distance_of_a_class_with_too_few_held_out_images(written, sweep):
    text, best = written.read_text(encoding="utf-8"), read_scores(sweep[1] / SCORES).cells["steps50-eta0"]
    table = text[text.index('<table class="classes">') : text.index("(–: too few of them).")]
    numbers = re.findall(r'<td class="number">([^<]*)</td>', table)
    assert [number == "–" for number in numbers] == ["excess" not in one for one in best.classes.values()]
    assert 0 < numbers.count("–") < len(numbers)
    assert '<th scope="col" class="number">excess</th>' in table


def _embedded(image):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))))


@pytest.mark.slow
def test_report_with_validation_losses_and_without_labels_floor_or_intervals(own, tmp_path):
    config, root = own
    for folder in [*(root / SAMPLES).iterdir(), root / PREPARED / "train", root / PREPARED / "test"]:
        store = open_store(folder)
        write_store(folder, np.array(store.images), None, {**store.meta, "classes": [], "counts": []})
    scores = json.loads((root / SCORES).read_text())
    del scores["reference"]["floor"], scores["intervals"]
    for cell in scores["cells"].values():
        for name in [name for name in cell["scores"] if name.endswith(("floor", "excess", "_low", "_high"))]:
            del cell["scores"][name]
        del cell["errors"]
    for chosen in (scores["best"], *scores["front"]):
        chosen["optimism"] = None
    write_json(root / SCORES, scores)
    write_validation_losses(root / LOSS_CURVE)
    text = report((config, root), tmp_path / "report").read_text(encoding="utf-8")
    page = Page(text)
    assert not [image for image in page.images if "of class" in image["alt"]]
    assert {"hybrid loss", "kernel distance, KD"} <= set(page.text), "labels of axes"
    assert "0.42, least 0.4 after step 15" in text
    assert "; validation, EMA 0.42; validation, raw weights 0.46" in text
    assert [words for words in ("confidence interval", "±", 'class="best"') if words in text] == []


@pytest.mark.slow
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


def test_scores_of_other_samples_are_refused(own, tmp_path):
    config, root = own
    smaller = config.model_copy(update={"sweep": config.sweep.model_copy(update={"steps": (5, 10)})})
    with pytest.raises(DiffctlError, match="have different cells"):
        report((smaller, root), tmp_path / "report")
    for steps in (5, 10, 50):
        for eta in (0.0, 1.0):
            cell = Cell(steps=steps, eta=eta)
            write_cell(root / SAMPLES / cell.name, config, cell, model_sha256="b" * 64)
    with pytest.raises(DiffctlError, match=r"other samples \(model_sha256"):
        report((config, root), tmp_path / "report")


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ({"extractor": "effnet-lite0-96"}, "extractor effnet-lite0-64 → effnet-lite0-96"),
        ({"reference": "test"}, "reference_split train → test"),
        ({"prc_images": 50}, "prc_images 60 → 50"),
        (
            {"weights": "other.pth", "weights_sha256": "a" * 64},
            r"effnet-lite0-64\.weights_sha256 .* → aaaa",
        ),
    ],
)
def test_scores_of_other_settings_are_refused(sweep, section, found):
    with pytest.raises(UsageError, match=found):
        inputs_of(make_config(evaluate=section), sweep[1])


def test_facts_of_another_training_are_refused(own):
    config, root = own
    for digest, refused in (("a" * 64, False), ("b" * 64, True)):
        identity = {"key": "k", "fingerprint": "f", "model_sha256": digest, "facts": FACTS}
        write_json(root / RUN, add_checksum(identity))
        with pytest.raises(UsageError, match=r"of the model b{16}, and") if refused else nullcontext():
            assert inputs_of(config, root).facts is not None


@pytest.mark.slow
def test_full_disk_keeps_the_old_report(sweep, mount, tmp_path):
    disk = mount(tmp_path / "disk", "128k")
    out = disk / "report"
    out.mkdir()
    (out / "index.html").write_text("before")
    with pytest.raises(OSError, match="No space left on device"):
        report(sweep, out)
    assert list(disk.rglob("*")) == [out, out / "index.html"]
    assert (out / "index.html").read_text() == "before"
    make_room(disk)
    report(sweep, out)
    assert "<html" in (out / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("error::UserWarning")  # matplotlib warns if names leave no room
def test_further_axes_and_spaces_have_lines_and_columns(own, tmp_path):
    _, root = own
    sweep = {"steps": [5, 10], "eta": [0.0, 1.0], "sampler": ["ddim", "dpm-solver++"]}
    config = make_config(sweep=sweep, evaluate={"extra_extractors": ["effnet-lite0-96"]})
    shutil.rmtree(root / SAMPLES)
    write_sweep(root / SAMPLES, config)
    make_reference(config.evaluate, root / PREPARED, root / REFERENCE)
    document = score_sweep(config, root / SAMPLES, root / REFERENCE)
    write_scores(document, root / SCORES, root / SCORE_CURVES)
    with open(root / SCORE_CURVES, newline="") as file:
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
