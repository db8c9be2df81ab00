"""Requests beside each other make the images that each makes alone, whoever joins, leaves or fails."""

import threading

import pytest
import torch
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from diffusion.analysis.inversion import decode_images, encode, encoding
from diffusion.engine.engine import CHUNK_SIZE, Engine, Full
from diffusion.engine.job import CustomTrajectory, Job
from diffusion.model.model_file import LoadedModel
from diffusion.process.process_config import ProcessConfig
from diffusion.protocol.samplers import SAMPLERS, SamplerEntry, build_sampler
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.class_labels import labels_condition, mixed_condition
from diffusion.sample.generate import check_settings, generate, model_denoiser, noise_draws
from diffusion.sample.nan_guard import NonFiniteError
from diffusion.sample.sampler import DenoiserCall, Step
from diffusion.system.errors import UsageError
from diffusion.system.threads import PREFETCH_NAME, device_threads
from tests.helpers.networks import artefact_of, network_of, spec_of

CPU = torch.device("cpu")
BF16_MOVED, BF16_FAR = 0.05, 0.01  # shares of bytes that differ at all, and by more than a grey level
MODEL = LoadedModel(network_of(spec_of()), artefact_of(spec_of()))


def wanted(model: LoadedModel = MODEL, indices=range(2), klass: int | None = None, **values):
    """Settings, indices and condition, as `Engine.add` takes them."""
    settings = SampleSettings(**values)
    if klass is None:
        return settings, indices, mixed_condition(model.artefact, settings, indices)
    return (
        settings,
        indices,
        labels_condition(model.artefact, torch.full((len(indices),), klass), len(indices)),
    )


def alone(model: LoadedModel, job: Job) -> torch.Tensor:
    return generate(model, job.settings, job.indices, job.condition, CPU)


def run_out(engine: Engine) -> list[Job]:
    """Pass after pass until no job is left; the jobs in the order of their ends."""
    ended = []
    while engine.jobs:
        ended += engine.step().ended
    return ended


def assert_as_alone(model: LoadedModel, job: Job) -> None:
    assert job.error is None
    assert job.images is not None
    assert int((job.images.int() - alone(model, job).int()).abs().max()) <= 1


class Beside(RuleBasedStateMachine):
    """Requests of any kind join, leave and go on in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine(MODEL, CPU, rows=12, max_images=40)
        self.at_work: list[Job] = []
        self.ended: list[Job] = []

    @rule(
        sampler=st.sampled_from([("ddim", 0.0), ("ddim", 0.7), ("ddim", 1.0), ("dpm-solver++", 0.0)]),
        steps=st.integers(1, 6),
        guidance=st.sampled_from([0.0, 0.0, 1.5]),
        klass=st.sampled_from([None, 0, 7]),
        noise=st.sampled_from(["small", "large", "learned"]),
        first=st.integers(0, 50),
        count=st.integers(1, 9),
        seed=st.integers(0, 3),
    )
    def add(self, sampler, steps, guidance, klass, noise, first, count, seed):
        name, eta = sampler
        chosen = {"sampler": name, "eta": eta if steps > 1 else 0.0, "noise": noise, "guidance": guidance}
        asked = wanted(MODEL, range(first, first + count), klass, steps=steps, seed=seed, **chosen)
        held = sum(map(len, self.at_work))
        if held + count > 40:
            with pytest.raises(Full, match=f"^{held} images are being made"):
                self.engine.add(*asked)
        else:
            self.at_work.append(self.engine.add(*asked))

    @precondition(lambda self: self.at_work)
    @rule(which=st.integers(0, 99))
    def cancel(self, which):
        job = self.at_work.pop(which % len(self.at_work))
        self.engine.cancel(job)
        assert job.ended
        assert job.images is None

    @precondition(lambda self: self.at_work)
    @rule(passes=st.integers(1, 4))
    def step(self, passes):
        for _ in range(passes):
            made = self.engine.step()
            assert 0 <= made.rows <= 12
            assert bool(made.rows) == bool(self.at_work)
            for job in made.ended:
                self.at_work.remove(job)
                self.ended.append(job)

    @invariant()
    def holds_what_is_at_work(self):
        assert self.engine.held == sum(map(len, self.at_work))
        assert not any(job.ended for job in self.at_work)

    def teardown(self):
        ended = self.ended + run_out(self.engine)
        for job in ended:
            assert_as_alone(MODEL, job)
        assert {id(job) for job in ended} >= {id(job) for job in self.at_work}
        assert self.engine.held == 0


TestBeside = Beside.TestCase
TestBeside.settings = hypothesis_settings(max_examples=12, stateful_step_count=12, deadline=None)


def test_requests_of_all_lengths_share_the_passes():
    with Engine(MODEL, CPU) as engine:
        jobs = [engine.add(*wanted(steps=steps, eta=1.0)) for steps in (5, 10, 20, 40)]
        passes = 0
        while engine.jobs:
            engine.step()
            passes += 1
    assert passes == 40
    for job in jobs:
        assert_as_alone(MODEL, job)


def test_one_that_joins_late_is_not_held_up_by_a_long_one():
    with Engine(MODEL, CPU, rows=8) as engine:
        long = engine.add(*wanted(indices=range(32), steps=50))
        for _ in range(10):
            engine.step()
        short = engine.add(*wanted(indices=[3], steps=2))
        passes = 0
        while not short.ended:
            engine.step()
            passes += 1
        assert passes <= 4
        assert not long.ended
        assert_as_alone(MODEL, short)
        engine.cancel(long)


def test_the_passes_are_shared_equally_whoever_wants_more():
    with Engine(MODEL, CPU, rows=8) as engine:
        jobs = [engine.add(*wanted(indices=range(count), steps=100)) for count in (40, 8, 16)]
        for _ in range(60):
            engine.step()
        served = [job.served for job in jobs]
        assert max(served) - min(served) <= 8
        for job in jobs:
            engine.cancel(job)


def test_a_request_of_more_than_a_pass_is_made_part_by_part():
    with Engine(MODEL, CPU, rows=5) as engine:
        job = engine.add(*wanted(indices=range(7), steps=3, guidance=1.0, eta=0.5))
        steps = []
        while engine.jobs:
            made = engine.step()
            assert made.rows <= 5
            steps += made.steps
    assert_as_alone(MODEL, job)
    seen = sorted((one.step.done, *range(7)[one.images]) for one in steps)
    assert len(seen) == 3 * 4  # parts of two images, and one of one
    assert [part.stop - part.start for part in {one.images.start: one.images for one in steps}.values()] == [
        2, 2, 2, 1,
    ]  # fmt: skip


def test_two_halves_beside_each_other_make_the_same(monkeypatch):
    monkeypatch.setattr("diffusion.engine.engine.splitting_helps", lambda device: True)
    with Engine(MODEL, CPU) as engine:
        jobs = [engine.add(*wanted(indices=range(count), steps=4, eta=1.0)) for count in (1, 6)]
        run_out(engine)
    for job in jobs:
        assert_as_alone(MODEL, job)


def test_an_unconditional_model_and_one_of_bf16_are_served():
    spec = spec_of(num_classes=0, null_class=False)
    for model in (
        LoadedModel(network_of(spec), artefact_of(spec)),
        LoadedModel(network_of(spec_of()), artefact_of(spec_of(), precision="bf16")),
    ):
        with Engine(model, CPU) as engine:
            jobs = [engine.add(*wanted(model, steps=steps, eta=1.0)) for steps in (2, 3)]
            run_out(engine)
        for job in jobs:
            assert job.images is not None
            assert job.images.shape == (2, 1, 8, 8)


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="no bf16 in this processor")
@pytest.mark.parametrize("values", [{"steps": 5, "eta": 1.0}, {"steps": 20}], ids=str)
def test_in_bf16_company_moves_few_bytes_and_these_hardly(values):
    """Within the shares that docs/serving.md states; another seed's images are far beyond them."""
    spec = spec_of()
    process = ProcessConfig(timesteps=100, variance="learned", loss="hybrid", prediction="velocity")
    model = LoadedModel(network_of(spec), artefact_of(spec, precision="bf16", process=process))
    with Engine(model, CPU) as engine:
        jobs = []
        for number in range(8):
            jobs.append(engine.add(*wanted(model, range(2 * number, 2 * number + 2), **values)))
            engine.add(*wanted(model, range(number % 3 + 1), steps=7 + number, eta=1.0, seed=5))
            engine.step()
        run_out(engine)
        other = engine.add(*wanted(model, range(16), seed=1, **values))
    served = torch.cat([job.images for job in jobs]).int()
    offline = torch.cat([alone(model, job) for job in jobs]).int()
    apart, strangers = (served - offline).abs(), (alone(model, other).int() - offline).abs()
    assert float((apart > 0).float().mean()) < BF16_MOVED
    assert float((apart > 1).float().mean()) < BF16_FAR
    assert float((strangers > 1).float().mean()) > 10 * BF16_MOVED


def test_what_this_model_cannot_do_is_refused_at_once():
    with Engine(MODEL, CPU) as engine:
        with pytest.raises(UsageError, match="101 sampling steps do not fit"):
            engine.add(*wanted(steps=101))
        with pytest.raises(UsageError, match="eta 99"):
            engine.add(*wanted(steps=50, eta=99))
        assert engine.held == 0
    with pytest.raises(ValueError, match="two rows or more"):
        Engine(MODEL, CPU, rows=1)


class SometimesNone(torch.nn.Module):
    """The network, but for images of class 3, of which it says NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MODEL.network

    def forward(self, x, t, labels):
        said = self.network(x, t, labels)
        return torch.where((labels == 3).reshape(-1, 1, 1, 1), torch.nan, said)


def test_numbers_that_are_none_end_their_own_request_alone():
    model = LoadedModel(SometimesNone(), MODEL.artefact)
    with Engine(model, CPU) as engine:
        whole = engine.add(*wanted(klass=2, steps=4))
        broken = engine.add(*wanted(klass=3, indices=[8, 9], steps=4))
        ended = run_out(engine)
    assert ended == [broken, whole]
    assert isinstance(broken.error, NonFiniteError)
    assert "image 8 is NaN or infinite from step 1 on" in str(broken.error)
    assert_as_alone(MODEL, whole)


def failing(settings: SampleSettings):
    """A sampler with a fault, at its second step."""

    def walk(grid, x, noise):
        for done, step in enumerate(grid.walk(), start=1):
            said = yield DenoiserCall(x, step.t)
            if done == 2:
                raise ZeroDivisionError("a fault")
            yield Step(done, len(grid), said.x0, said.x0)

    return walk


def test_a_sampler_with_a_fault_ends_its_own_request_alone(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "failing", SamplerEntry("tests.engine.test_engine:failing"))
    with Engine(MODEL, CPU) as engine:
        broken = engine.add(*wanted(sampler="failing", indices=range(CHUNK_SIZE + 3), steps=4))
        whole = engine.add(*wanted(steps=4))
        ended = run_out(engine)
    assert ended == [broken, whole]
    assert isinstance(broken.error, ZeroDivisionError)
    assert_as_alone(MODEL, whole)


def test_a_network_that_fails_ends_those_of_its_pass():
    def broken(x, t, labels):
        raise MemoryError("no room")

    with Engine(LoadedModel(broken, MODEL.artefact), CPU, rows=2) as engine:  # type: ignore[arg-type]
        first, second = (engine.add(*wanted(steps=4)) for _ in range(2))
        assert engine.step().ended == [first]
        assert isinstance(first.error, MemoryError)
        assert not second.ended


def test_requests_join_and_leave_from_other_threads_in_the_midst_of_a_pass():
    inside, go_on = threading.Event(), threading.Event()

    def slow(x, t, labels):
        inside.set()
        assert go_on.wait(30)
        return MODEL.network(x, t, labels)

    with Engine(LoadedModel(slow, MODEL.artefact), CPU) as engine:  # type: ignore[arg-type]
        gone, stays = engine.add(*wanted(steps=2)), engine.add(*wanted(steps=3, seed=1))
        thread = threading.Thread(target=engine.step)
        thread.start()
        assert inside.wait(30)
        engine.cancel(gone)
        joined = engine.add(*wanted(steps=2, seed=2))
        assert engine.held == 4
        go_on.set()
        thread.join()
        run_out(engine)
    assert gone.images is None
    assert_as_alone(MODEL, stays)
    assert_as_alone(MODEL, joined)


def test_noise_that_is_drawn_ahead_makes_the_same_bits(monkeypatch):
    """As on a GPU: the draws of each part come one ahead, all from one thread; who cancels leaves some."""
    asked = [wanted(indices=range(3), steps=4, eta=0.7), wanted(indices=range(9, 20), steps=3, eta=1.0)]

    def made(pool):
        with Engine(MODEL, CPU, rows=32) as engine:
            engine._noise_pool = pool
            jobs = [engine.add(*one) for one in asked]
            cancelled = engine.add(*wanted(steps=50, eta=1.0))
            engine.step()
            engine.cancel(cancelled)
            run_out(engine)
        return torch.cat([job.images for job in jobs])

    expected, gpu = made(None), torch.device("cuda")
    monkeypatch.setattr("diffusion.engine.job.noise_draws", lambda chosen, _: noise_draws(chosen, gpu))
    with device_threads(1, CPU) as pool:
        assert torch.equal(made(pool), expected)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(PREFETCH_NAME)]


def test_a_job_of_its_own_course_begins_at_given_rows_and_ends_as_it_says():
    """There by DDIM backwards, and back again, beside others, as each alone."""
    images = torch.rand(CHUNK_SIZE + 1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    settings, indices, condition = wanted(indices=range(CHUNK_SIZE + 1), steps=5, clip=False)
    with Engine(MODEL, CPU) as engine:
        beside = engine.add(*wanted(steps=3, eta=1.0))
        there = engine.add(settings, indices, condition, CustomTrajectory(images, encoding, lambda x: x))
        run_out(engine)
        assert there.images is not None
        back = engine.add(
            settings, indices, condition, CustomTrajectory(there.images, build_sampler(settings))
        )
        run_out(engine)
    grid = check_settings(MODEL.artefact, settings)
    exact = encode(model_denoiser(MODEL), grid, images, condition)
    torch.testing.assert_close(there.images, exact, rtol=1e-4, atol=1e-4)
    alone_back = decode_images(MODEL, settings, there.images, condition)
    assert back.images is not None
    assert int((back.images.int() - alone_back.int()).abs().max()) <= 1
    assert_as_alone(MODEL, beside)
