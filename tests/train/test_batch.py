"""The draws of a step: each row from its own generator, each image once per epoch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffusion.images.store import ImageStore
from diffusion.process.objective import Batch
from diffusion.process.time_samplers import HISTORY, LossAware, TimeSampler, Uniform
from diffusion.train.batch import ImageLoader, draw_batch, draw_rows, epoch_rows
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.plan import TrainPlan
from tests.helpers.trainings import CPU, plan_of
from tests.helpers.trajectories import process_of

TIMESTEPS = 20
PROCESS = process_of("cosine", TIMESTEPS)
SURE = 1e-4  # significance level of the tests; the draws are the same in every run


def numbered(count: int) -> ImageStore:
    """Return images of alternating classes, each with its number in its first two pixels."""
    images = np.zeros((count, 8, 8, 1), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(count), 256)
    meta = {"name": "numbers", "classes": list("abc"), "counts": [1] * 3, "digest": "0"}
    return ImageStore(Path(), images, np.arange(count) % 3, {**meta, "image_size": 8, "channels": 1})


def described(store: ImageStore, model: dict[str, Any] | None = None, **train: Any) -> TrainPlan:
    settings = {
        "model": model or {},
        "process": {"timesteps": TIMESTEPS},
        "data": {"flip": True},
        "sweep": {"steps": [2]},
    }
    return plan_of(store, train={"microbatch": None, **train}, **settings)


def learned() -> LossAware:
    """Return a sampler after larger losses at larger t."""
    sampler = LossAware(PROCESS)
    for _ in range(HISTORY):
        sampler.update(torch.arange(TIMESTEPS), torch.linspace(0, 2, TIMESTEPS))
    return sampler


def numbers_of(batch: Batch) -> list[int]:
    """Return the images' numbers, mirrored or not."""
    pixels = ((batch.x_0[:, 0, 0] + 1) * 127.5).round().long()
    ends = torch.where(pixels[:, :1] + pixels[:, 1:2] > 0, pixels[:, :2], pixels[:, -2:].flip(1))
    return (ends[:, 0] * 256 + ends[:, 1]).tolist()


def assert_same(parts: list[Batch], whole: Batch) -> None:
    for index, expected in enumerate(whole):
        if expected is None:
            continue
        assert torch.equal(torch.cat([list(part)[index] for part in parts]), expected)


@given(
    count=st.integers(1, 40),
    size=st.integers(1, 30),
    step=st.integers(0, 10**6),
    world=st.integers(1, 6),
    microbatch=st.integers(1, 30),
    sampler=st.sampled_from([Uniform(PROCESS), learned()]),
    stratified=st.booleans(),
    augment=st.sampled_from([None, {"probability": 0.5}]),
    model=st.sampled_from([{}, {"low_res": 2}, {"low_res": 4, "cond_noise": 0.3}]),
)
def test_shares_and_microbatches_are_parts_of_the_batch(
    count, size, step, world, microbatch, sampler, stratified, augment, model
):
    store, data = numbered(count), ImageLoader(numbered(count), CPU)
    plan = described(store, model, batch_size=size, p_uncond=0.3, augment=augment)
    plan = plan.model_copy(update={"process": plan.process.model_copy(update={"stratified": stratified})})
    whole = draw_batch(plan, sampler, data, step)
    group = [ProcessGroup(CPU, rank, min(world, size)) for rank in range(min(world, size))]
    shares = [draw_batch(plan, sampler, data, step, one.share(size)) for one in group]
    assert_same(shares, whole)
    assert_same([part for share in shares for part in share.divide(-(-len(share.t) // microbatch))], whole)
    starts = range(0, size, microbatch)
    alone = [draw_batch(plan, sampler, data, step, slice(at, at + microbatch)) for at in starts]
    assert_same(alone, whole)


@given(count=st.integers(1, 60), size=st.integers(1, 50), seed=st.integers(0), epochs=st.integers(1, 4))
def test_each_epoch_has_each_image_once(count, size, seed, epochs):
    steps = range(-(-epochs * count // size))
    places = [range(step * size, (step + 1) * size) for step in steps]
    seen = torch.cat([epoch_rows("train", seed, part, count) for part in places])[: epochs * count]
    assert seen.dtype == torch.int64
    for epoch in seen.split(count):
        assert torch.equal(epoch.sort().values, torch.arange(count))


def test_epochs_have_different_orders():
    orders = [
        tuple(epoch_rows(purpose, seed, range(epoch * 50, (epoch + 1) * 50), 50).tolist())
        for purpose in ("train", "classifier")
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    ]
    assert len({*orders, tuple(range(50))}) == len(orders) + 1


def many(sampler: TimeSampler, **train: Any) -> tuple[Batch, ImageStore]:
    """Return a batch of 4000 different images, and their store."""
    store = numbered(4000)
    return draw_batch(described(store, batch_size=4000, **train), sampler, ImageLoader(store, CPU), 2), store


@pytest.mark.parametrize("sampler", [Uniform(PROCESS), learned()], ids=["uniform", "loss-aware"])
def test_timesteps_are_drawn_by_their_probabilities(sampler):
    batch, _ = many(sampler)
    p = sampler.probabilities() if sampler.learns else torch.full((TIMESTEPS,), 1 / TIMESTEPS).double()
    found = torch.bincount(batch.t, minlength=TIMESTEPS)
    assert stats.chisquare(found, 4000 * p / p.sum()).pvalue > SURE
    assert torch.allclose(batch.weights.double(), 1 / (TIMESTEPS * p[batch.t]), rtol=1e-6)


def test_flips_dropped_labels_and_timesteps_are_independent_and_noise_is_normal():
    batch, store = many(Uniform(PROCESS), p_uncond=0.25)
    numbers = numbers_of(batch)
    mirrored = batch.x_0[:, 0, 0, -2:].amax(1) > -1
    dropped = batch.labels == 3
    late = batch.t >= TIMESTEPS // 2
    assert sorted(numbers) == list(range(4000))
    for chosen, share in ((mirrored, 0.5), (dropped, 0.25), (late, 0.5)):
        assert stats.binomtest(int(chosen.sum()), 4000, share).pvalue > SURE
    for one, other in ((mirrored, dropped), (mirrored, late), (dropped, late)):
        table = [[int((a & b).sum()) for b in (other, ~other)] for a in (one, ~one)]
        assert stats.chi2_contingency(table).pvalue > SURE
    kept = ~dropped
    assert torch.equal(batch.labels[kept], torch.from_numpy(store.labels[numbers])[kept])
    assert stats.kstest(batch.noise.flatten().numpy(), "norm").pvalue > SURE
    assert len({row.numpy().tobytes() for row in batch.noise}) == 4000


def test_low_res_images_are_means_of_the_flipped_images_with_noise_of_a_uniform_level():
    batch, _ = many(Uniform(PROCESS), model={"low_res": 4, "cond_noise": 0.5})
    means = batch.x_0.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    level = batch.noise_level[:, None, None, None]
    noise = (batch.low_res - means) / level
    assert stats.kstest(2 * batch.noise_level.numpy(), "uniform").pvalue > SURE
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > SURE
    assert stats.spearmanr(batch.noise_level, batch.t).pvalue > SURE
    assert abs(float((noise * batch.noise[:, :, :4, :4]).mean())) < 4 / noise.numel() ** 0.5, (
        "the noise of x_t"
    )
    plain, _ = many(Uniform(PROCESS))
    assert all(torch.equal(one, other) for one, other in zip(plain[:5], batch[:5], strict=True))
    clean, _ = many(Uniform(PROCESS), model={"low_res": 4})
    assert torch.allclose(clean.low_res, means, atol=1e-6)


def test_a_row_does_not_depend_on_the_row_before():
    """Normals are drawn in pairs, so that an odd number leaves one over."""
    (uniforms, noise), name = draw_rows(("train", 0, 0), range(9), (1, 1, 3)), ("train", 0, 0)
    for row in range(9):
        alone, own = draw_rows(name, range(row, row + 1), (1, 1, 3))
        assert torch.equal(alone[:, 0], uniforms[:, row])
        assert torch.equal(own[0], noise[row])
