"""Quality for the time given: trained, sampled and scored on a device, of digits in a second."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import quality
from diffusion.system.devices import default_device

DIGITS = quality.PROFILES / "digits.yaml"
SIZE = quality.Size(seconds=1, images=30, steps=2)


@pytest.mark.slow
def test_ours_is_trained_for_the_time_and_scored_there(tmp_path):
    device, data = default_device(), quality.prepared(DIGITS, tmp_path)
    images, how = quality.ours(data.train, SIZE, device, DIGITS)
    assert images.shape == (30, 8, 8, 1)
    assert "steps of batch 64" in how
    judge = quality.Judge(data.test.images, device)
    assert judge(images) > judge(data.train.images[:30]) > judge(data.test.images) - 1e-6


@pytest.mark.parametrize(("seconds", "steps"), [(99.0, 41), (9.0, 11), (0.0, 8), (-60.0, 1)])
def test_the_steps_are_those_after_what_is_done_once(monkeypatch, seconds, steps):
    """The trial logs after 10, 20 and 30 steps; the first log comes after 6 s, then 3 s pass for one step."""
    times = iter([0.0, 6.0, 36.0, 66.0])
    monkeypatch.setattr(quality.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(quality, "_changed", lambda plan, changes: plan)
    monkeypatch.setattr(quality, "new_state", lambda *_: None)
    monkeypatch.setattr(quality, "should_compile", lambda *_: False)

    def train(state, store, group, observer, *_):
        for step in (10, 20, 30):
            observer.metrics(step, {})

    monkeypatch.setattr(quality, "train", train)

    plan = SimpleNamespace(train=None)
    assert quality.steps_in(seconds, plan, None, torch.device("cpu")) == steps
