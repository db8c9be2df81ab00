"""Import of OpenAI checkpoints: equal outputs to an independent network in the original layout."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.interop.from_openai import import_openai
from diffusion.model.model_file import load_model, save_artefact
from diffusion.model.presets import PRESETS, Preset
from diffusion.system.errors import DiffctlError, UsageError
from tests.helpers.openai_layout import Layout

SMALL = {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    # model section, equivalent original flags, whether attention is ordered by head
    "adm-64": (
        {**SMALL, "num_res_blocks": 2, "attention_resolutions": (8, 4), "head_channels": 16},
        {
            "num_res_blocks": 2,
            "attention_resolutions": (8, 4),
            "num_head_channels": 16,
            "new_attention_order": True,
        },
        False,
    ),
    "adm-128": (
        {**SMALL, "channel_mult": (1, 1, 2), "attention_resolutions": (8, 4), "heads": 4},
        {"channel_mult": (1, 1, 2), "attention_resolutions": (8, 4), "num_heads": 4},
        True,
    ),
    "adm-256": (
        {**SMALL, "attention_resolutions": (4,), "head_channels": 32},
        {"attention_resolutions": (4,), "num_head_channels": 32},
        True,
    ),
    "iddpm-imagenet64": (
        {
            **SMALL,
            "channel_mult": (1, 2, 3),
            "attention_resolutions": (4, 2),
            "heads": 4,
            "resample": "plain",
            "time_scale": 0.25,
        },
        {
            "channel_mult": (1, 2, 3),
            "attention_resolutions": (4, 2),
            "num_heads": 4,
            "resblock_updown": False,
            "rescale_timesteps": 0.25,
        },
        True,
    ),
    "iddpm-cifar10": (
        {**SMALL, "attention_resolutions": (4,), "heads": 4, "resample": "plain", "time_scale": 0.25},
        {"attention_resolutions": (4,), "num_heads": 4, "resblock_updown": False, "rescale_timesteps": 0.25},
        True,
    ),
    "ddpm-cifar10": (
        {**SMALL, "channel_mult": (2, 2), "heads": 1, "resample": "plain", "embedding": "additive"},
        {"channel_mult": (2, 2), "resblock_updown": False, "scale_shift_norm": False},
        True,
    ),
}


def shrink(monkeypatch: pytest.MonkeyPatch, name: str, image_size: int = 8) -> dict[str, Any]:
    """Replace the preset by a small one. Return its flags in the original layout."""
    model, flags, by_head = CASES[name]
    preset = PRESETS[name]
    small = Preset(
        model, preset.process, preset.train, preset.data, image_size, preset.num_classes, 0, "", by_head
    )
    monkeypatch.setitem(PRESETS.data, name, small)
    return {
        "image_size": image_size,
        "num_channels": 32,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        **flags,
    }


def publish(layout: Layout, path: Path, half: bool = False) -> None:
    """Write the layout's weights as a .pt file, as the original code does."""
    y = torch.zeros(1, dtype=torch.int64) if layout.num_classes else None
    layout(torch.zeros(1, layout.in_channels, layout.image_size, layout.image_size), torch.zeros(1), y)
    state = {name: tensor.half() if half else tensor for name, tensor in layout.state.items()}
    torch.save(state, path)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("channels", "learned", "classes"), [(3, True, 10), (1, False, 0), (3, False, 4), (1, True, 0)]
)
def test_outputs_match_original_network(tmp_path, monkeypatch, name, channels, learned, classes):
    flags = shrink(monkeypatch, name)
    out = 2 * channels if learned else channels
    layout = Layout(in_channels=channels, out_channels=out, num_classes=classes, **flags)
    publish(layout, tmp_path / "a.pt")
    weights, artefact = import_openai(tmp_path / "a.pt", name)
    save_artefact(tmp_path / "a.safetensors", weights, artefact)
    network, loaded_artefact = load_model(tmp_path / "a.safetensors")
    assert loaded_artefact.network.num_classes == classes
    assert (
        loaded_artefact.network.learned_variance == learned == (loaded_artefact.process.variance == "learned")
    )
    x = torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 17, 500, 999])
    y = torch.arange(4) if classes else None
    expected = layout(x, t, y)
    assert torch.allclose(network(x, t, y), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_attention_order_changes_qkv_weights(tmp_path, monkeypatch):
    """The outputs can only match with the right order."""
    flags = shrink(monkeypatch, "adm-128")
    layout = Layout(in_channels=1, out_channels=2, **flags)
    publish(layout, tmp_path / "a.pt")
    right, _ = import_openai(tmp_path / "a.pt", "adm-128")
    monkeypatch.setitem(CASES, "adm-128", (*CASES["adm-128"][:2], False))
    shrink(monkeypatch, "adm-128")
    wrong, _ = import_openai(tmp_path / "a.pt", "adm-128")
    changed = [key for key in right if not torch.equal(right[key], wrong[key])]
    assert changed
    assert all(".qkv." in key for key in changed)


def test_half_precision_files_become_float32(tmp_path, monkeypatch):
    layout = Layout(in_channels=3, out_channels=6, num_classes=10, **shrink(monkeypatch, "adm-256"))
    publish(layout, tmp_path / "a.pt", half=True)
    weights, artefact = import_openai(tmp_path / "a.pt", "adm-256")
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert torch.equal(weights["stem.weight"], layout.state["input_blocks.0.0.weight"].half().float())
    assert artefact.data.classes == tuple("0123456789")
    assert artefact.train["steps"] == 1_980_000


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, torch.Tensor]]:
    layout = Layout(in_channels=3, out_channels=6, num_classes=10, **shrink(monkeypatch, "adm-256"))
    publish(layout, tmp_path / "a.pt")
    return tmp_path / "a.pt", layout.state


KEY = "output_blocks.1.0.in_layers.2.bias"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({KEY: None}, "no adm-256: output_blocks.1.0.in_layers.2.bias is missing"),
        ({"output_blocks.9.0.norm.weight": (1,)}, "output_blocks.9.0.norm.weight is left over"),
        (
            {"middle_block.0.in_layers.2.weight": (64, 32, 3, 3)},
            "has shape (64, 32, 3, 3), not (64, 64, 3, 3)",
        ),
        ({"input_blocks.0.0.weight": (32, 6, 3, 3)}, "cannot be used: in_channels: "),  # an upsampler
    ],
    ids=["missing", "unexpected", "shape", "upsampler"],
)
def test_first_wrong_key_is_named_in_error(published, changes, message):
    path, state = published
    state |= {name: torch.zeros(shape) for name, shape in changes.items() if shape}
    torch.save({name: state[name] for name in state if changes.get(name, True)}, path)
    with pytest.raises(DiffctlError, match=re.escape(message)):
        import_openai(path, "adm-256")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.pt is not a checkpoint of plain weights, or it is damaged: name"),
        (b"not a checkpoint at all", "a.pt is not a checkpoint of plain weights, or it is damaged: name"),
        (b"a text file\nof two lines\n", "a.pt is not a checkpoint of plain weights, or it is damaged: name"),
        (b"\x80\x02ctorch\n", "a.pt is not a checkpoint of plain weights, or it is damaged: name"),
        ({1: torch.zeros(1)}, "no dictionary of tensors"),
        ({"a": 1}, "'a' is no plain tensor"),
        ({"a": torch.zeros(1, device="meta")}, "'a' is no plain tensor"),
        ({"a": torch.zeros(1, 1).to_sparse()}, "'a' is no plain tensor"),
        ({"a": torch.zeros(1).expand(10**12)}, "'a' is no plain tensor"),
        ({"input_blocks.0.0.weight": torch.zeros(()), "out.2.weight": torch.zeros(1)}, "its shapes differ"),
        ([torch.zeros(1)], "no dictionary of tensors"),
        ({"a": torch.zeros(1)}, "no U-Net of guided-diffusion or improved-diffusion: input_blocks.0.0"),
    ],
)
def test_invalid_checkpoints_are_refused(tmp_path, content, message):
    path = tmp_path / "a.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(DiffctlError, match=message) as caught:
        import_openai(path, "adm-64")
    assert "\n" not in str(caught.value)


class MaliciousObject:
    """Object that touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_code_is_not_executed(tmp_path):
    torch.save({"a": MaliciousObject(tmp_path / "ran")}, tmp_path / "a.pt")
    with pytest.raises(DiffctlError, match="plain weights"):
        import_openai(tmp_path / "a.pt", "adm-64")
    assert not (tmp_path / "ran").exists()


def test_missing_file_and_unknown_preset_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no file at"):
        import_openai(tmp_path / "none.pt", "adm-64")
    with pytest.raises(UsageError, match=r"no preset 'adm-32': give one of adm-64, "):
        import_openai(tmp_path / "none.pt", "adm-32")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iddpm-cifar10", "ddpm-cifar10"])
def test_full_size_network_matches_original(tmp_path, name):
    preset = PRESETS[name]
    flags = {
        "iddpm-cifar10": {"attention_resolutions": (16, 8), "num_heads": 4, "rescale_timesteps": 0.25},
        "ddpm-cifar10": {"attention_resolutions": (16,), "scale_shift_norm": False},
    }[name]
    layout = Layout(
        image_size=32,
        in_channels=3,
        out_channels=6 if name == "iddpm-cifar10" else 3,
        num_channels=128,
        channel_mult=(1, 2, 2, 2),
        num_res_blocks=preset.model["num_res_blocks"],
        resblock_updown=False,
        **flags,
    )
    publish(layout, tmp_path / "a.pt")
    weights, artefact = import_openai(tmp_path / "a.pt", name)
    assert sum(tensor.numel() for tensor in weights.values()) == preset.parameters
    save_artefact(tmp_path / "a.safetensors", weights, artefact)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 3999])
    expected = layout(x, t)
    found = load_model(tmp_path / "a.safetensors").network(x, t)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
