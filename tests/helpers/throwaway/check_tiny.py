"""The output depends on image, time and label, each row on its own."""

import torch

from diffusion.model.network_registry import build_network
from plugins.model.tiny import TinySpec


def test_each_row_depends_on_its_own_image_time_and_label() -> None:
    shape = {"image_size": 8, "in_channels": 1, "out_channels": 2, "num_classes": 3, "null_class": True}
    network = build_network(TinySpec(name="tiny", width=6, **shape))
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([3, 500]), torch.tensor([0, 3])
    output = network(x, t, labels)
    assert output.shape == (2, 2, 8, 8)
    for changed in ((x + 1, t, labels), (x, t + 9, labels), (x, t, labels - labels)):
        rows = (network(*changed) != output).flatten(1).any(1)
        assert rows.tolist() == ([True, True] if changed[2] is labels else [False, True])
