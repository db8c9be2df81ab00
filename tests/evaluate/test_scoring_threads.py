"""Threads of the stage `evaluate`: cores, exact float32 and progress."""

import threading

import pytest
import torch

from diffusion.evaluate.features.extractors import exact_float32
from diffusion.evaluate.sweep_scores import ProgressCounter, two_scoring_threads
from diffusion.system.threads import HALVES, Stopped


def test_each_thread_has_half_of_the_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with two_scoring_threads() as pool:
            both = threading.Barrier(HALVES)

            def share():
                both.wait(timeout=60)  # every thread of the pool answers
                return torch.get_num_threads()

            assert [one.result() for one in [pool.submit(share) for _ in range(HALVES)]] == [2, 2]
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


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
