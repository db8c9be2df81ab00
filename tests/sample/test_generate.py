"""Image generation: image i depends only on the seed and i, and invalid settings give one-line errors."""

import threading

import pytest
import torch
from pydantic import ValidationError

from diffusion.model.model_file import DataCard
from diffusion.process.noise import ImageNoise, counter_generator
from diffusion.protocol.grid import settings_card
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import class_condition, mixed_condition
from diffusion.sample.generate import check_settings, generate, noise_draws
from diffusion.system.errors import UsageError
from diffusion.system.threads import PREFETCH_NAME, in_halves
from tests.helpers.networks import artefact_of, loaded_model, spec_of

CPU = torch.device("cpu")
SPEC, MODEL = spec_of(), loaded_model()
ARTEFACT = MODEL.artefact
SETTINGS = SampleSettings(steps=4, eta=0.7, seed=3)


def images(indices, settings=SETTINGS) -> torch.Tensor:
    return generate(MODEL, settings, indices, mixed_condition(ARTEFACT, settings, indices), CPU)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 5])
def test_parallel_halves_give_the_same_images(two_threads, count):
    """A callback needs all images of a step, so the batch is not split."""
    condition, batch_sizes = mixed_condition(ARTEFACT, SETTINGS, range(count)), set()
    arguments = MODEL, SETTINGS, range(count), condition, CPU
    full = generate(*arguments, lambda step: batch_sizes.add(len(step.x)))
    assert batch_sizes == {count}
    assert int((generate(*arguments).int() - full.int()).abs().max()) <= 1
    assert torch.get_num_threads() == 2


def test_failed_half_stops_the_other_half(two_threads):
    ended = threading.Event()

    def work(half, check):
        if half.start is not None:
            raise ValueError("the second half")
        try:
            while True:
                check()
        finally:
            ended.set()

    with pytest.raises(ValueError, match="the second half"):
        in_halves(work, 4)
    assert ended.is_set()


@pytest.mark.parametrize(
    ("sampler", "eta", "options", "adds_noise"),
    [
        ("ddim", 0.0, {}, False),
        ("ddim", 0.7, {}, True),
        ("euler-ancestral", 0.0, {}, True),
        ("dpm-solver++-2m-sde", 0.0, {"eta": 0.0}, False),
        ("heun", 0.0, {}, False),
        ("heun", 0.0, {"s_churn": 2.0}, True),
        ("unipc", 0.0, {}, False),
        ("consistency", 0.0, {}, True),
    ],
)
def test_prefetched_noise_gives_bitwise_equal_images(monkeypatch, sampler, eta, options, adds_noise):
    """As on a GPU: a separate thread draws x_T and the noise of each stochastic step."""
    values = {"sampler": sampler, "eta": eta, "sampler_options": options}
    chosen = SampleSettings(**{**SETTINGS.model_dump(), **values})
    expected, threads = images(range(5), chosen), set()
    draw = ImageNoise.draw

    def recorded_draw(noise):
        threads.add(threading.current_thread().name.partition("_")[0])
        return draw(noise)

    gpu = torch.device("cuda")
    assert noise_draws(chosen, gpu) == (4 if adds_noise else 0)
    assert noise_draws(chosen, CPU) == 0
    monkeypatch.setattr("diffusion.sample.generate.noise_draws", lambda chosen, _: noise_draws(chosen, gpu))
    monkeypatch.setattr(ImageNoise, "draw", recorded_draw)
    assert torch.equal(images(range(5), chosen), expected)
    assert (PREFETCH_NAME in threads) == adds_noise


def test_generation_does_not_use_the_global_generator():
    torch.manual_seed(0)
    first = images([0, 1])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(images([0, 1]), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_standard_normal_and_differs_between_draws_and_images():
    noise = ImageNoise(0, range(200), (1, 16, 16))
    first, second = noise.draw(), noise.draw()
    assert abs(float(first.mean())) < 0.02
    assert abs(float(first.var()) - 1) < 0.03
    assert abs(float((first * second).mean())) < 0.02
    assert abs(float((first[:-1] * first[1:]).mean())) < 0.02


def test_generator_seed_depends_on_purpose_and_numbers():
    names = ("a", 1, 2), ("a", 12), ("a", 1, 2, 0), ("b", 1, 2)
    seeds = [counter_generator(*name).initial_seed() for name in names]
    assert len(set(seeds)) == 4
    assert counter_generator("a", 1, 2).initial_seed() == seeds[0]


def test_labels_follow_the_index_and_with_classes_of_data_the_class_counts():
    assert mixed_condition(ARTEFACT, SETTINGS, [0, 9, 10, 37]).labels.tolist() == [0, 9, 0, 7]
    mixed = SETTINGS.model_copy(update={"classes": "data"})
    labels = mixed_condition(ARTEFACT, mixed, range(4000)).labels
    assert torch.equal(mixed_condition(ARTEFACT, mixed, range(100, 120)).labels, labels[100:120])
    share = torch.bincount(labels, minlength=10) / 4000
    assert torch.allclose(share, torch.arange(1, 11) / 55, atol=0.03)
    without_counts = DataCard(name="d", classes=ARTEFACT.data.classes, digest="0")
    with pytest.raises(UsageError, match="class counts"):
        mixed_condition(artefact_of(SPEC, data=without_counts), mixed, [0])


def test_unconditional_model_has_no_labels_and_rejects_a_class():
    artefact = artefact_of(spec_of(num_classes=0, null_class=False))
    assert mixed_condition(artefact, SETTINGS, [1]).labels is None
    with pytest.raises(UsageError, match="takes no class"):
        class_condition(artefact, "3", 1)


def test_a_class_is_a_name_or_a_number():
    named_by_digits = artefact_of(SPEC, data=DataCard(name="d", classes=tuple("9876543210"), digest="0"))
    for artefact, wanted, label in (
        (ARTEFACT, "class7", 7),
        (ARTEFACT, "7", 7),
        (ARTEFACT, 7, 7),
        (named_by_digits, "9", 0),
        (named_by_digits, 9, 9),
    ):
        assert class_condition(artefact, wanted, 2).labels.tolist() == [label, label]
    for value in ("10", "-1", "class10", "²", "", 10, -1):
        with pytest.raises(UsageError, match=r"give 0 to 9, or one of class0, .*class9$"):
            class_condition(ARTEFACT, value, 1)


@pytest.mark.parametrize(
    ("changes", "spec_changes", "message"),
    [
        ({"steps": 101}, {}, "101 sampling steps do not fit: give 1 to 100"),
        ({"eta": 5.0}, {}, r"eta 5\.0 does not fit 4 steps: give 0 to"),
        ({"noise": "learned"}, {"out_channels": 1}, "learned variance"),
        ({"guidance": 1.0}, {"null_class": False}, "p_uncond"),
        ({"guidance": 1.0}, {"null_class": False, "num_classes": 0}, "p_uncond"),
        ({"timesteps": (0, 50, 40, 99)}, {}, "increase strictly"),
        ({"timesteps": (0, 30, 60, 100)}, {}, "end there"),
    ],
)
def test_unsupported_settings_give_one_line_errors(changes, spec_changes, message):
    artefact = artefact_of(spec_of(**spec_changes))
    with pytest.raises(UsageError, match=message) as caught:
        check_settings(artefact, SETTINGS.model_copy(update=changes))
    assert "\n" not in str(caught.value)


def test_explicit_timesteps_replace_the_spacing():
    listed = SampleSettings(timesteps="0, 33,66,99", eta=0.7, seed=3)
    assert listed.steps == 4
    assert listed.timesteps == (0, 33, 66, 99)
    assert settings_card(listed)["timesteps"] == "0,33,66,99"
    assert "spacing" not in settings_card(listed)
    assert check_settings(ARTEFACT, listed).times.tolist() == [0, 33, 66, 99]
    assert torch.equal(images([0, 1], listed), images([0, 1]))  # the uniform spacing of four steps
    assert not torch.equal(images([0], SampleSettings(timesteps=(1, 2, 5, 99), eta=0.7, seed=3)), images([0]))
    with pytest.raises(ValidationError, match="steps 3 is not the length of timesteps, 2"):
        SampleSettings(steps=3, timesteps=(0, 9))
