"""The commands over models: their results, and misuse as one sentence."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.analysis.inversion import decode_images
from diffusion.images.pixels import to_nchw
from diffusion.images.store import write_store
from diffusion.layout import MODEL
from diffusion.model.model_file import load_model, read_artefact, save_artefact
from diffusion.model.posthoc_ema import Snapshots, snapshot_path
from diffusion.model.presets import PRESETS
from diffusion.process.denoiser import Condition
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.generate import generate
from tests.helpers.invoke import Invoke, assert_refused
from tests.helpers.networks import artefact_of, edm_model, network_of, small_model, spec_of
from tests.helpers.openai_layout import Layout

CLASSES = [f"class{i}" for i in range(10)]


@pytest.fixture
def run(tmp_path, monkeypatch, invoke):
    """Run diffctl in a folder with a model and a test split; return its output."""
    monkeypatch.chdir(tmp_path)
    small_model(MODEL)
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    write_store(tmp_path / "data/prepared/test", images, np.arange(6), {"classes": CLASSES})

    def run(*arguments):
        done = invoke(*arguments)
        assert done.code == 0, done.err
        return json.loads(done.out) if "--json" in arguments else done.out

    return run


@pytest.mark.slow
def test_encode_writes_codes_reconstructions_and_a_picture(run, tmp_path):
    made = run("encode", "0", "4", "--out", "codes.npz", "--steps", "20", "--json")
    arrays = np.load(tmp_path / "codes.npz")
    assert arrays["codes"].shape == (2, 1, 8, 8)
    assert arrays["codes"].dtype == np.float32
    assert arrays["labels"].tolist() == [0, 4]
    loaded = load_model(MODEL)
    condition = Condition(2, torch.tensor([0, 4]))
    back = decode_images(loaded, SampleSettings(steps=20), torch.from_numpy(arrays["codes"]), condition)
    assert np.array_equal(to_nchw(arrays["reconstructions"]), back)
    error = np.abs(arrays["reconstructions"].astype(int) - arrays["images"]).mean()
    assert made["mean_pixel_error"] == pytest.approx(error, abs=1e-3)
    run("encode", "--num", "4", "--out", "a.png", "--steps", "3", "--batch-size", "3")
    assert Image.open(tmp_path / "a.png").size == (8 * (4 * 9 - 1), 8 * (3 * 9 - 1))


@pytest.mark.parametrize(
    "command",
    [
        "encode 0 --out out.npz",
        "interpolate 0 1 --out out.png",
        "grid --steps 2 --out out.json",
        "nll --steps 3 --out out.png",
    ],
)
def test_a_model_tuned_for_consistency_has_no_trajectories(run, invoke, command):
    spec, process = (
        spec_of(out_channels=1),
        ProcessConfig(schedule="edm", loss="consistency", weighting="none"),
    )
    save_artefact(MODEL, network_of(spec).state_dict(), artefact_of(spec, process=process))
    words = "the model was tuned for consistency", "use the one that it was tuned from"
    assert_refused(invoke(*command.split()), *words)


def test_encode_labels_files_by_the_class_option(run, tmp_path):
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(tmp_path / "mine.png")
    for arguments, label in (((), 10), (("--class", "class3"), 3)):
        run("encode", "mine.png", "--out", "a.npz", "--steps", "2", *arguments)
        arrays = np.load(tmp_path / "a.npz")
        assert arrays["labels"].tolist() == [label]
        assert bool((arrays["images"] == 200).all())


def test_middle_of_a_file_of_another_size_is_encoded(run, tmp_path):
    pixels = np.zeros((8, 12), np.uint8)
    pixels[:, 2:10] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    for command in ("encode wide.png --out a.npz", "interpolate wide.png 0 --out a.png --frames 2"):
        text = run(*command.split(), "--steps", "2")
        assert "wide.png: the middle of 8×12 pixels (height × width) at 8×8" in text
    assert bool((np.load(tmp_path / "a.npz")["images"] == 200).all())


def test_model_of_process_edm_is_encoded_with_spacing_karras(run, tmp_path):
    """Uniform times are even in σ there, so that almost all are noise."""
    edm_model(MODEL)
    codes = []
    for arguments in ((), ("--spacing", "karras"), ("--spacing", "uniform")):
        run("encode", "0", "--out", "a.npz", "--steps", "3", *arguments)
        codes.append(np.load(tmp_path / "a.npz")["codes"])
    assert np.array_equal(codes[0], codes[1])
    assert not np.array_equal(codes[0], codes[2])
    run("encode", "0", "--out", "a.png", "--steps", "3")
    code = np.asarray(Image.open(tmp_path / "a.png"))[9 * 8 : 17 * 8]  # the second row, in pixels of 8
    assert np.isin(code, (0, 255)).mean() < 0.1


@pytest.mark.slow
def test_interpolate_writes_a_strip_or_an_animation(run, tmp_path):
    out = run("interpolate", "0", "3", "--out", "strip.png", "--frames", "5", "--steps", "30")
    assert out == "5 images from 0 to 3: strip.png\n"
    assert Image.open(tmp_path / "strip.png").size == (8 * (5 * 9 - 1), 8 * 8)
    made = run("interpolate", "0", "3", "--out", "a.gif", "--frames", "4", "--steps", "2", "--json")
    assert made["frames"] == 4
    assert Image.open(tmp_path / "a.gif").n_frames == 4


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "estimate"), [("cosine", "vlb"), ("edm", "ode"), ("flow", "ode")])
def test_nll_returns_bits_and_writes_the_terms(run, tmp_path, schedule, estimate):
    spec = spec_of(out_channels=2 if estimate == "vlb" else 1)
    artefact = artefact_of(spec, process=ProcessConfig(schedule=schedule))
    save_artefact(MODEL, network_of(spec).state_dict(), artefact)
    made = run("nll", "--num", "3", "--steps", "5", "--json")
    rows = (tmp_path / "plots/nll.csv").read_text().splitlines()
    assert rows[0] == "t,bits_per_dimension"
    terms = sum(float(row.split(",")[1]) for row in rows[1:])
    assert made["bits_per_dimension"] == pytest.approx(terms + made["prior"], rel=1e-5)
    assert (made["images"], made["timesteps"], len(rows)) == (3, 5, 6)
    assert made["estimate"] == estimate
    assert Image.open(tmp_path / "plots/nll.png").format == "PNG"
    assert run("nll", "--num", "1", "--steps", "5", "--json")["standard_error"] is None


def test_imported_openai_checkpoint_samples(run, tmp_path, monkeypatch):
    size = {"channels": 32, "channel_mult": (2, 2), "num_res_blocks": 1, "attention_resolutions": ()}
    preset = PRESETS["ddpm-cifar10"]
    monkeypatch.setitem(PRESETS.data, "ddpm-cifar10", replace(preset, model={**preset.model, **size}))
    layout = Layout(32, 3, 3, 32, (2, 2), 1, scale_shift_norm=False, resblock_updown=False)
    layout(torch.zeros(1, 3, 32, 32), torch.zeros(1))
    torch.save(layout.state, tmp_path / "published.pt")
    made = run("import", "openai", "published.pt", "--preset", "ddpm-cifar10", "--json")
    loaded = load_model(tmp_path / "models/published.safetensors")
    assert made["parameters"] == sum(weight.numel() for weight in loaded.network.parameters())
    assert made["model"].items() >= {"channels": 32, "channel_mult": [2, 2], "num_res_blocks": 1}.items()
    assert (made["out"], made["preset"]) == ("models/published.safetensors", "ddpm-cifar10")
    assert made["process"] == {"schedule": "linear", "timesteps": 1000, "prediction": "eps"}
    run("sample", "--model", made["out"], "--steps", "2", "--num", "1", "-o", "a.npz")
    assert np.load(tmp_path / "a.npz")["arr_0"].shape == (1, 32, 32, 3)


def test_export_diffusers_writes_a_pipeline_folder(run, tmp_path):
    pytest.importorskip("diffusers")
    small_model(MODEL, channels=32, head_channels=32)
    assert run("export", "diffusers", "pipeline", "--json") == {"out": "pipeline"}
    assert (tmp_path / "pipeline/model_index.json").exists()


def test_sample_options_reach_the_sampler(run, tmp_path):
    loaded = load_model(MODEL)
    wanted = Condition(2, torch.tensor([0, 1]), 10)
    for arguments, settings in (
        (("--timesteps", "0,20,99"), SampleSettings(timesteps=(0, 20, 99))),
        (("--sampler", "dpm-solver++", "--steps", "4"), SampleSettings(sampler="dpm-solver++", steps=4)),
        (("--steps", "5", "--guidance", "2", "--guidance-interval", "0.3:4"),
         SampleSettings(steps=5, guidance=2.0, guidance_interval=(0.3, 4.0))),
    ):  # fmt: skip
        run("sample", "--num", "2", "--out", "a.npz", *arguments)
        expected = generate(loaded, settings, range(2), wanted, torch.device("cpu"))
        assert np.array_equal(to_nchw(np.load(tmp_path / "a.npz")["arr_0"]), expected)


@pytest.fixture(scope="module")
def misuse(tmp_path_factory):
    """A folder with models of other shapes and with files that are no images."""
    folder = tmp_path_factory.mktemp("misuse")
    small_model(folder / MODEL)
    small_model(folder / "models/no-null.safetensors", null_class=False)
    small_model(folder / "models/unlabelled.safetensors", num_classes=0, null_class=False)
    images = np.zeros((6, 8, 8, 1), np.uint8)
    write_store(folder / "data/prepared/test", images, np.arange(6), {"classes": CLASSES})
    Image.new("L", (8, 8)).save(folder / "mine.png")
    (folder / "text.png").write_text("not an image")
    return folder


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("sample --out a.png --timesteps 5,4,99", "timesteps"),
        ("sample --out a.png --guidance-interval 0.3:4", "without guidance"),
        ("sample --out a.png --guidance 2 --model models/no-null.safetensors", "p_uncond"),
        ("sample --out a.png --class 3 --model models/unlabelled.safetensors", "class"),
        (f"sample --num 1 --steps 1 --out {MODEL}/a.png", f"{MODEL}/a.png"),
        ("encode 6 --out a.npz", "0 to 5"),
        ("encode text.png --out a.npz", "text.png"),
        ("encode mine.png --out a.npz --model models/no-null.safetensors", "class"),
        ("encode 0 --out a.npz --model a --champion", "--champion"),
        ("nll --steps 500", "500"),
        ("export diffusers models", "models"),
    ],
)
def test_misuse_is_one_sentence_and_exit_code_2(misuse, monkeypatch, invoke, arguments, word):
    monkeypatch.chdir(misuse)
    assert_refused(invoke(*arguments.split()), word)


WIDTHS, STEPS = (0.05, 0.1), (4, 8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the snapshots of a training of 8 steps."""
    monkeypatch.chdir(tmp_path)
    spec = spec_of()
    for number, (width, step) in enumerate(itertools.product(WIDTHS, STEPS)):
        artefact = artefact_of(spec, step=step, ema_sigma_rel=width)
        weights = network_of(spec, seed=number).state_dict()
        save_artefact(snapshot_path(tmp_path / "models/ema", width, step), weights, artefact)
    return tmp_path


def test_each_width_becomes_a_model_file(folder: Path, invoke: Invoke) -> None:
    models = json.loads(invoke("ema", "--sigma-rel", "0.2,0.1,0.2", "--json").out)
    assert [model["sigma_rel"] for model in models] == [0.2, 0.1]
    assert len(list(folder.rglob("ema-*"))) == 2
    tracked = load_model(snapshot_path(folder / "models/ema", 0.1, 8))
    network, artefact = load_model(folder / "models/ema-0.1.safetensors")
    assert artefact == tracked.artefact, "a tracked width equals its last snapshot"
    for name, value in tracked.network.state_dict().items():
        assert torch.allclose(network.state_dict()[name], value, rtol=1e-6, atol=1e-7), name
    described = read_artefact(folder / "models/ema-0.2.safetensors")
    assert described.ema_sigma_rel == 0.2
    error = pytest.approx(Snapshots.of(folder / "models/ema").fit(0.2).error)
    expected = {"out": "models/ema-0.2.safetensors", "model_sha256": described.model_sha256, "error": error}
    assert models[0] == {"sigma_rel": 0.2, "step": 8, **expected}
    assert_refused(invoke("ema", "--sigma-rel", "0.2", "--out", "models/ema"), "has the snapshots")
    shutil.copy(folder / "models/ema-0.1.safetensors", folder / "models/ema")
    assert Snapshots.of(folder / "models/ema").fit(0.2).error == error, "it is no snapshot"


@pytest.mark.parametrize("width", ["", "0.005", "0.3", "nan", "0.1,,0.2"])
def test_invalid_width_is_refused(folder: Path, invoke: Invoke, width: str) -> None:
    assert_refused(invoke("ema", f"--sigma-rel={width}"), "--sigma-rel", "0.01", "0.28")
    assert not list(folder.rglob("ema-*"))
