"""The benchmark of starts, at a size that says nothing but that it runs."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.finetuning import CPU, HeldOutLoss, compared, few_classes, planned, trained
from diffusion.config import parse
from diffusion.images.store import open_store
from diffusion.model.model_file import save_artefact
from diffusion.train.identity import result_of
from diffusion.train.loop import new_state
from diffusion.train.start import keep_start
from tests.conftest import params


def test_a_start_and_its_rival_are_told_at_the_same_steps(
    digits_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, config, starts = open_store(digits_store), parse(params(), "test"), tmp_path / "starts"
    state, losses = trained(planned(config, store, 5, starts, None), store, store, starts)
    assert list(losses) == [0, 1, 2, 3, 4, 5]
    path = tmp_path / "first.safetensors"
    save_artefact(path, state.ema.state_dict(), result_of(state.plan))
    start = keep_start(path, starts)[1].model_sha256
    some = few_classes(store, tmp_path / "few")
    assert np.unique(some.labels).tolist() == [0, 1, 2, 3, 4]
    compared("digits", config, [some, some], 5, starts, start)
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("digits: 5 steps from scratch end at ")
    assert len(told) == 7


def test_the_same_network_has_the_same_held_out_loss(digits_store: Path, tmp_path: Path) -> None:
    store = open_store(digits_store)
    plan = planned(parse(params(), "test"), store, 5, tmp_path, None)
    network = new_state(plan, CPU).ema
    first, again = HeldOutLoss(plan, store), HeldOutLoss(plan, store)
    first.look(0, network)
    again.look(0, network)
    assert first.seen == again.seen
