"""What watches a training: previews that change nothing, what a full disk costs, rates of the steps alone."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cli.observe import write_preview
from diffusion.data.store import open_store
from diffusion.training import TrainState, new_state
from tests.test_training import CPU, artefact_of, assert_same, run_until

DROPOUT = {"model": {"dropout": 0.3}, "train": {"lr": 0.01}}


def preview(path: Path, state: TrainState) -> np.ndarray:
    write_preview(path, state.artefact, state.network, state.ema)
    return np.asarray(Image.open(path))


def test_a_preview_is_a_function_of_the_weights_and_changes_nothing(
    digits_store: Path, tmp_path: Path
) -> None:
    store = open_store(digits_store)
    watched, alone = (new_state(artefact_of(store, **DROPOUT), CPU) for _ in range(2))
    for state in (watched, alone):
        run_until(state, store, 5)
    first = preview(tmp_path / "first.png", watched)
    torch.manual_seed(1)
    preview(tmp_path / "second.png", watched)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    row = 64  # pixels: 8 of a digit, eight times as large
    assert not np.array_equal(first[:row], first[-row:]), "raw weights above, their EMA below"
    assert watched.network.training
    assert not watched.ema.training
    assert_same(watched, alone)
    for state in (watched, alone):
        run_until(state, store, 6)
    assert_same(watched, alone)
