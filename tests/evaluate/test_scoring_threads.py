"""Threads of the stage `evaluate`: cores, exact float32 and progress."""

import threading

import pytest
import torch

from diffusion.evaluate.features.extractors import exact_float32
from diffusion.evaluate.sweep_scores import ProgressCounter, two_scoring_threads
from diffusion.system.threads import Stopped


def test_exact_float32_lasts_until_the_last_thread_ends():
    """The setting is process-wide: reset by the first thread, it would give the other one TF32."""
    entered, inside, ended = (threading.Event() for _ in range(3))
    precision = torch.get_float32_matmul_precision()

    def long():
        entered.wait(timeout=60)
        with exact_float32():
            inside.set()
            ended.wait(timeout=60)
            return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    def short():
        with exact_float32():
            entered.set()
            inside.wait(timeout=60)

    torch.set_float32_matmul_precision("high")
    try:
        with two_scoring_threads() as pool:
            first = pool.submit(short)
            second = pool.submit(long)
            first.result()
            ended.set()
            assert second.result() == ("highest", False)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(precision)


def test_progress_never_decreases():
    seen = []
    counter = ProgressCounter(lambda done, total: seen.append((done, total)), 20)
    one, other = counter.part(), counter.part()
    for show, done in ((one, 0), (other, 0), (one, 4), (other, 8), (one, 10), (other, 10)):
        show(done)
    assert seen == [(0, 20), (0, 20), (4, 20), (12, 20), (18, 20), (20, 20)]


def test_stopped_part_raises():
    counter = ProgressCounter(None, 20)
    show = counter.part()
    show(3)
    counter.stop()
    with pytest.raises(Stopped):
        show(4)
