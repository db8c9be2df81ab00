"""Scores of edits against their formulas, and the table of `diffctl evaluate --edit`."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from diffusion.edit.operators import Measurement, build_operator
from diffusion.images.pictures import DISPLAY_SIZE, GAP
from diffusion.images.pixels import to_model
from diffusion.images.store import open_store, write_store
from diffusion.layout import MODEL
from diffusion.report.edit_report import mean_scores, scores_by_picture
from tests.helpers.invoke import assert_refused
from tests.helpers.networks import edm_model, small_model

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)


@pytest.mark.slow  # torchmetrics takes seconds to load
def test_scores_are_those_of_the_formulas() -> None:
    originals = torch.from_numpy(PIXELS[:5].transpose(0, 3, 1, 2).copy())
    noise = np.random.default_rng(1).integers(-9, 10, (5, 3, 1, 8, 8))
    results = torch.from_numpy((originals.numpy()[:, None].astype(int) + noise).clip(0, 255).astype(np.uint8))
    operator = build_operator("downsample:2", (1, 8, 8))
    measurement = Measurement(operator, operator.apply(to_model(originals)))
    found = scores_by_picture(results, originals, measurement)
    difference = results.numpy().astype(float) - originals.numpy()[:, None]
    ratio = 10 * np.log10(255**2 / (difference**2).mean((2, 3, 4)))
    assert np.allclose(found["psnr"], ratio.mean(1))
    assert np.allclose(found["spread"], np.sqrt(results.numpy().var(1, ddof=1).mean((1, 2, 3))))
    blocks = difference.reshape(5, 3, 4, 2, 4, 2).mean((3, 5))
    assert np.allclose(found["measured_error"], np.sqrt((blocks**2).mean((2, 3))).mean(1), atol=1e-4)
    exact = scores_by_picture(originals[:, None], originals, measurement)
    assert exact["ssim"].tolist() == pytest.approx([1.0] * 5)
    assert float(exact["measured_error"].max()) < 1e-4
    assert set(exact) == {"measured_error", "psnr", "ssim"}
    means, values = mean_scores(found), found["psnr"].numpy()
    ends = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    assert (means["psnr_low"], means["psnr_high"]) == pytest.approx(ends)


@pytest.mark.slow
def test_command_scores_each_operator_method_and_number_of_steps(project, invoke) -> None:
    small_model(MODEL)
    write_store(Path("real"), PIXELS, None, {"name": "real"})
    grid = ("--edit", "mask:0,0,8,4", "--edit", "blur:0.7", "--method", "ddnm", "--method", "dps")
    command = (
        "evaluate",
        "real",
        "--against",
        "real",
        *grid,
        "--steps",
        "2,3",
        "--num-images",
        "4",
        "--num",
        "2",
    )
    done = invoke(*command, "--out", "x.json", "--html", "x.html")
    assert done.code == 0, done.err
    assert "means over 4 pictures of real, 2 result(s) each" in done.out
    cells = json.loads(Path("x.json").read_text())["cells"]
    assert [(one["operator"], one["method"], one["nfe"]) for one in cells] == [
        (operator, method, nfe)
        for operator in ("mask:0,0,8,4", "blur:0.7")
        for method, nfes in (("ddnm", (2, 3)), ("dps", (4, 6)))
        for nfe in nfes
    ]
    protocols = {(one["operator"], one["method"]): one["protocol"] for one in cells}
    assert len(set(protocols.values())) == len(protocols)
    for one in cells:
        assert one["protocol"] == protocols[one["operator"], one["method"]]
        low, value, high = (one["scores"][f"kd_effnet_lite0_64{end}"] for end in ("_low", "", "_high"))
        assert low <= value <= high
        assert one["card"]["operator"] == one["operator"]
        assert len(one["card"]["inputs_sha256"]) == 64
        assert one["card"]["extractor"] == "effnet-lite0-64"
        assert one["card"]["reference_digest"] == open_store(Path("real")).digest
        assert (one["card"]["pictures"], one["card"]["results"]) == (4, 2)
    assert cells[0]["scores"]["measured_error"] == 0
    page = Path("x.html").read_text()
    for one in cells:  # each score with its interval, and a picture of the most steps
        assert f"{one['scores']['psnr']:.3g} ± " in page
    assert re.findall(r"<figcaption>(\w+), (\d+) NFE", page) == [("ddnm", "3"), ("dps", "6")] * 2
    side = 8 * (DISPLAY_SIZE // 8)
    columns, rows = 2 + 2 + 1, 4  # two results beside picture, measurement and spread
    pngs = [base64.b64decode(text) for text in re.findall(r"base64,([^\"]+)", page)]
    sizes = {Image.open(io.BytesIO(png)).size for png in pngs}
    assert len(pngs) == 4
    assert sizes == {(columns * (side + GAP) - GAP, rows * (side + GAP) - GAP)}


@pytest.mark.slow
def test_spacing_is_karras_for_process_edm_unless_given(project, invoke) -> None:
    edm_model(MODEL)
    write_store(Path("real"), PIXELS, None, {"name": "real"})
    command = ("evaluate", "real", "--against", "real", "--edit", "blur:0.7", "--steps", "1", "--json")
    for options, spacing in (((), "karras"), (("--spacing", "log-snr"), "log-snr")):
        done = invoke(*command, "--num-images", "2", "--num", "1", *options)
        assert done.code == 0, done.err
        assert json.loads(done.out)["cells"][0]["card"]["spacing"] == spacing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["real", "--against", "real", "--steps", "5"], "--steps is for the scores of edits"),
        (["--edit", "blur:1", "--paper", "ddim"], "--paper has no effect on scores of edits"),
        (["--edit", "blur:1", "--prc-samples", "9"], "--prc-samples has no effect on scores of edits"),
        (["real", "--edit", "blur:1", "--against", "real", "--split", "test"], "real has no splits"),
        (["real", "--edit", "blur:1", "--against", "real", "--weights", "none"], "has bundled weights"),
        (["real", "--edit", "blur"], "blur:SIGMA is the form of blur"),
        (["real", "--edit", "blur:1", "--method", "sdedit"], "method sdedit takes no operator"),
        (["real", "--edit", "gray", "--against", "real"], "gray needs images with 3 channels"),
        (["real", "--edit", "blur:1", "--steps", "a"], "steps: it must be a whole number"),
        (["real", "--edit", "blur:1", "--spacing", "karas"], "did you mean karras?"),
        (["real", "--against", "real", "--spacing", "karras"], "--spacing is for the scores of edits"),
    ],
)
def test_wrong_use_is_refused(arguments: list[str], words: str, project, invoke) -> None:
    small_model(MODEL)
    write_store(Path("real"), PIXELS, None, {"name": "real"})
    assert_refused(invoke("evaluate", *arguments), words)
