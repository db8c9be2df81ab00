"""Import of OpenAI checkpoints: equal outputs to an independent network in the original layout."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from diffusion.interop.from_openai import import_openai
from diffusion.model.model_file import load_model, save_artefact
from diffusion.model.presets import PRESETS
from diffusion.system.errors import DiffctlError, UsageError
from tests.helpers.openai_layout import Layout

SMALL = {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
PLAIN = {"resample": "plain", "time_scale": 0.25}
CASES: dict[str, dict[str, Any]] = {  # small networks with the options of each preset
    "adm-64": {"num_res_blocks": 2, "attention_resolutions": (8, 4), "head_channels": 16},
    "adm-128": {"channel_mult": (1, 1, 2), "attention_resolutions": (8, 4), "heads": 4},
    "adm-256": {"attention_resolutions": (4,), "head_channels": 32},
    "adm-64-to-256": {"attention_resolutions": (8, 4), "heads": 4, "low_res": 4},
    "adm-128-to-512": {"attention_resolutions": (8, 4), "head_channels": 16, "low_res": 2},
    "iddpm-imagenet64": {"channel_mult": (1, 2, 3), "attention_resolutions": (4, 2), "heads": 4, **PLAIN},
    "iddpm-cifar10": {"attention_resolutions": (4,), "heads": 4, **PLAIN},
    "ddpm-cifar10": {"channel_mult": (2, 2), "heads": 1, "resample": "plain", "embedding": "additive"},
}
FLAGS = {
    "channels": "num_channels",
    "head_channels": "num_head_channels",
    "heads": "num_heads",
    "time_scale": "rescale_timesteps",
}


def shrink(monkeypatch: pytest.MonkeyPatch, name: str) -> dict[str, Any]:
    """Replace the preset by a small one for 8×8 images. Return its flags in the original code."""
    section = {**SMALL, **CASES[name]}
    monkeypatch.setitem(PRESETS.data, name, replace(PRESETS[name], model=section, image_size=8, parameters=0))
    flags = {FLAGS.get(key, key): value for key, value in section.items() if key != "low_res"}
    return {
        "image_size": 8,
        "resblock_updown": flags.pop("resample", None) != "plain",
        "scale_shift_norm": flags.pop("embedding", None) != "additive",
        "new_attention_order": name == "adm-64",
        **flags,
    }


def publish(layout: Layout, path: Path, half: bool = False) -> None:
    """Write the layout's weights as a .pt file, as the original code does."""
    y = torch.zeros(1, dtype=torch.int64) if layout.num_classes else None
    layout(torch.zeros(1, layout.in_channels, layout.image_size, layout.image_size), torch.zeros(1), y)
    state = {name: tensor.half() if half else tensor for name, tensor in layout.state.items()}
    torch.save(state, path)


KINDS = [(3, True, 10), (1, False, 0), (3, False, 4), (1, True, 0)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("adm-64", kind) for kind in KINDS),
        *((name, KINDS[row % 4]) for row, name in enumerate([*CASES][1:])),
    ],
)
def test_outputs_match_original_network(tmp_path, monkeypatch, name, kind):
    channels, learned, classes = kind
    sizes = {"in_channels": channels, "out_channels": channels * (1 + learned), "num_classes": classes}
    layout, low_res = Layout(**sizes, **shrink(monkeypatch, name)), CASES[name].get("low_res")
    layout.in_channels *= 1 if low_res is None else 2
    publish(layout, tmp_path / "a.pt")
    weights, artefact = import_openai(tmp_path / "a.pt", name)
    save_artefact(tmp_path / "a.safetensors", weights, artefact)
    network, loaded = load_model(tmp_path / "a.safetensors")
    assert loaded.network.num_classes == classes
    assert loaded.network.learned_variance == learned == (loaded.process.variance == "learned")
    x = torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 17, 500, 999])
    y = torch.arange(4) if classes else None
    joined, further = x, {}
    if low_res is not None:
        further["low_res"] = torch.randn(4, channels, low_res, low_res)
        enlarged = interpolate(further["low_res"], (8, 8), mode="bilinear", align_corners=False)
        joined = torch.cat([x, enlarged], dim=1)
    expected = layout(joined, t, y)
    output = network(x, t, y, **further)
    assert torch.allclose(output, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


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
            "has shape (64, 32, 3, 3), not that of (64, 64, 3, 3)",
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
    "content",
    [
        b"",
        b"a text file\nof two lines\n",
        b"\x80\x02ctorch\n",
        {1: torch.zeros(1)},
        {"a": 1},
        {"a": torch.zeros(1, device="meta")},
        {"a": torch.zeros(1, 1).to_sparse()},
        {"a": torch.zeros(1).expand(10**12)},
        [torch.zeros(1)],
    ],
)
def test_files_without_plain_weights_are_refused(tmp_path, content):
    path = tmp_path / "a.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(DiffctlError, match="not a checkpoint of plain weights") as caught:
        import_openai(path, "adm-64")
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(tmp_path):
    scalar, vector = torch.zeros(()), torch.zeros(1)
    for weights in ({"a": vector}, {"input_blocks.0.0.weight": scalar, "out.2.weight": vector}):
        torch.save(weights, tmp_path / "a.pt")
        with pytest.raises(DiffctlError, match="no U-Net of guided-diffusion or improved-diffusion"):
            import_openai(tmp_path / "a.pt", "adm-64")


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
