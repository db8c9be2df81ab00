"""Import from diffusers: equal outputs, and a lossless round trip of exported models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.interop.from_diffusers import RENAMED_WEIGHTS, import_diffusers
from diffusion.interop.to_diffusers import export_diffusers
from diffusion.model.model_file import Artefact, load_model, save_artefact
from diffusion.system.errors import DiffctlError, UsageError
from tests.interop.test_to_diffusers import model

diffusers = pytest.importorskip("diffusers")

# google/ddpm-cifar10-32's config.json, with a quarter of its channels.
DDPM: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [64, 128, 128, 128],
    "layers_per_block": 2,
    "downsample_padding": 0,
    "attention_head_dim": None,
    "norm_eps": 1e-6,
}
SMALL: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [64, 64],
    "layers_per_block": 1,
}
BIGGAN = {
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 32,
}


def pipeline(folder: Path, scheduler_options: dict[str, Any] | None = None, **config: Any):
    """Save a pipeline with a network in which every weight is random. Return the network."""
    unet = diffusers.UNet2DModel(**config).eval()
    with torch.no_grad():
        for weight in unet.parameters():
            weight.add_(0.05 * torch.randn(weight.shape))
    scheduler = diffusers.DDPMScheduler(**(scheduler_options or {}))
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return unet


def check_equal_outputs(unet, folder: Path, labels: torch.Tensor | None = None) -> Artefact:
    """Import the pipeline and compare the networks. Return the metadata of the model file."""
    path = folder.with_suffix(".safetensors")
    save_artefact(path, *import_diffusers(folder))
    loaded = load_model(path)
    size, channels = unet.config.sample_size, unet.config.in_channels
    x, t = torch.randn(2, channels, size, size), torch.tensor([3, 870])
    with torch.no_grad():
        ours = loaded.network(x, t, labels)
        theirs = unet(x, t, class_labels=labels).sample
    assert ours.std() > 0.1
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=2e-5 * float(theirs.abs().max()))
    return loaded.artefact


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_google_ddpm_config_gives_equal_outputs(tmp_path):
    folder = tmp_path / "ddpm"
    unet = pipeline(folder, {"variance_type": "fixed_large"}, **DDPM)
    artefact = check_equal_outputs(unet, folder)
    network = artefact.network
    assert (network.downsample_padding, network.frequency_shift, network.norm_eps) == ("after", 1, 1e-6)
    assert (artefact.process.schedule, artefact.process.variance) == ("linear", "large")
    assert (artefact.data.name, artefact.process.timesteps) == ("ddpm", 1000)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_class_embeds": 5},
        {"out_channels": 2},
        {"downsample_padding": 0, "attention_head_dim": 16},
        {"freq_shift": 1},
        {"flip_sin_to_cos": False, "norm_eps": 1e-3},
        BIGGAN,
        {**BIGGAN, "num_class_embeds": 3, "downsample_padding": 0},
    ],
    ids=str,
)
def test_other_configs_give_equal_outputs(tmp_path, changes):
    learned = "learned_range" if changes.get("out_channels") == 2 else "fixed_small"
    unet = pipeline(tmp_path / "a", {"variance_type": learned}, **{**SMALL, **changes})
    check_equal_outputs(unet, tmp_path / "a", torch.tensor([0, 2]) if "num_class_embeds" in changes else None)


def test_legacy_pipeline_with_old_weight_names_in_pickle(tmp_path):
    folder = tmp_path / "old"
    unet = pipeline(folder, **{**SMALL, "attention_head_dim": None})
    for name in ("unet/config.json", "scheduler/scheduler_config.json"):
        (folder / name).rename(folder / Path(name).name)
    old_names = {new: old for old, new in RENAMED_WEIGHTS.items()}

    def legacy_name(name: str) -> str:
        for new, old in old_names.items():
            name = name.replace(f".{new}.", f".{old}.")
        return name

    weights = {legacy_name(name): weight for name, weight in unet.state_dict().items()}
    torch.save(weights, folder / "diffusion_pytorch_model.bin")
    for name in ("unet", "scheduler"):
        shutil.rmtree(folder / name)
    check_equal_outputs(unet, folder)


@pytest.mark.parametrize(
    ("schedule", "prediction", "zero_snr"),
    [
        ("linear", "eps", False),
        ("cosine", "x0", False),
        ("linear", "velocity", False),
        ("cosine", "velocity", True),
    ],
)
def test_process_and_prediction_survive_round_trip(tmp_path, schedule, prediction, zero_snr):
    names = {"zero_terminal_snr": zero_snr}
    names |= {"schedule": schedule, "prediction": prediction, "variance": "small", "loss": "simple"}
    loaded = model({**names, "timesteps": 200}, in_channels=3, out_channels=3, null_class=False)
    export_diffusers(loaded, tmp_path / "out")
    assert import_diffusers(tmp_path / "out")[1].process == loaded.artefact.process


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the folder of a pipeline with five classes."""
    folder = tmp_path_factory.mktemp("saved") / "a"
    pipeline(folder, **SMALL, num_class_embeds=5)
    return folder


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"act_fn": "gelu"}, "act_fn"),
        ("unet/config.json", {"cross_attention_dim": 64}, "cross_attention_dim: unknown key"),
        ("unet/config.json", {"norm_num_groups": 16}, "norm_num_groups 16 cannot be expressed"),
        ("unet/config.json", {"sample_size": 9}, "image_size 9 must be divisible by 2"),
        ("unet/config.json", {"downsample_type": "resnet"}, "resample in different ways"),
        ("unet/config.json", {"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups: null"),
        ("unet/config.json", {"block_out_channels": [64, 96]}, "does not divide all others"),
        ("unet/config.json", {"layers_per_block": 2}, r"down_blocks\.\d\.\w+\.1\.\S+ is missing"),
        ("unet/config.json", {"num_class_embeds": None}, r"class_embedding\.weight is left over"),
        ("unet/config.json", {"in_channels": 3, "out_channels": 3}, r"conv_\w+\.weight has shape"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "scaled_linear"}, "beta_schedule: allowed are"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.03}, "beta_schedule linear is none of"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1] * 1000}, "trained_betas is none of"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("scheduler/scheduler_config.json", {"variance_type": "learned"}, "variance_type 'learned'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_unsupported_key_is_named_in_error(saved, tmp_path, file, changes, message):
    shutil.copytree(saved, tmp_path / "a")
    edit(tmp_path / "a" / file, **changes)
    with pytest.raises(DiffctlError, match=message):
        import_diffusers(tmp_path / "a")


def test_missing_pipeline_and_damaged_weights_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no folder at"):
        import_diffusers(tmp_path / "none")
    with pytest.raises(UsageError, match=r"config\.json is missing: name the folder of a pipeline"):
        import_diffusers(tmp_path)
    pipeline(tmp_path / "a", **SMALL)
    weights = tmp_path / "a/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(DiffctlError, match="not a checkpoint of plain weights"):
        import_diffusers(tmp_path / "a")
    weights.unlink()
    with pytest.raises(UsageError, match="the weights are not there"):
        import_diffusers(tmp_path / "a")


def test_command_reports_imported_model(saved, tmp_path, monkeypatch, invoke):
    monkeypatch.chdir(tmp_path)
    result = invoke("import", "diffusers", str(saved), "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert (report["out"], report["schedule"]) == ("models/a.safetensors", "linear")
    assert load_model(tmp_path / report["out"]).artefact.data.name == "a"
