"""Quality for the time given: the rate follows the time, which is used up; images are scored."""

import pytest

from benchmarks import quality
from benchmarks.quality import ElapsedRate, Stopwatch
from diffusion.config import load
from diffusion.system.devices import default_device
from diffusion.train.optimizers.lr_schedule import CosineLR, learning_rate

DIGITS = quality.PROFILES / "digits.yaml"
SIZE = quality.Size(seconds=1, images=30, steps=2)


def test_rate_is_the_schedules_at_the_elapsed_share(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(quality.time, "perf_counter", lambda: now[0])
    schedule, watch = CosineLR(rate=0.003, warmup=10), Stopwatch(240)
    rate = ElapsedRate(schedule, 100, watch)
    for share in (0.0, 0.05, 0.5, 0.99, 1.0, 1.01):
        now[0] = 100 + 240 * share
        step = min(99, int(100 * share + 1e-9))
        assert learning_rate(rate, 7, 10**8) == learning_rate(schedule, step, 100)


@pytest.mark.slow
def test_training_lasts_as_long_as_given_and_is_scored(tmp_path):
    config, device = load(DIGITS), default_device()
    train, test = quality.prepared(config, tmp_path)
    images, how = quality.ours(config, train, SIZE, device)
    assert images.shape == (30, 8, 8, 1)
    assert "steps of batch 64" in how
    judge = quality.Judge(test.images, device)
    assert judge(images) > judge(train.images[:30]) > judge(test.images) - 1e-6
