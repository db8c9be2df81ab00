"""The engine: images of batched requests match separate runs, with guides too, even if others end or fail."""

import threading
from contextlib import closing

import pytest
import torch
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from diffusion.analysis.inversion import decode_images, encoding
from diffusion.engine.engine import CHUNK_SIZE, Engine, Full
from diffusion.engine.job import Job, batched_forward
from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Prediction
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.samplers import SAMPLERS, SamplerEntry
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import labels_condition, mixed_condition
from diffusion.sample.generate import check_settings, generate, model_denoiser
from diffusion.sample.guides import NO_GUIDES, Guides
from diffusion.sample.sampler import CustomTrajectory, DenoiserCall, NonFiniteError, Step, build_sampler
from diffusion.sample.sampling_steps import count_nfe
from diffusion.system.errors import UsageError
from tests.helpers.networks import artefact_of, counting, loaded_classifier, network_of, spec_of
from tests.helpers.trajectories import walk

MAX_BF16_CHANGED, MAX_BF16_FAR = 0.05, 0.01  # shares of bytes that differ, and that differ by more than 1
MODEL = LoadedModel(network_of(spec_of()), artefact_of(spec_of()))
CPU = torch.device("cpu")
FREE = {"num_classes": 0, "null_class": False}
REQUESTS = [
    {"guidance": 1.0, "guide": "early"},
    {"guidance": 2.0, "guide": "early", "guidance_interval": (0.3, 3.0), "sampler": "dpm-solver++"},
    {"classifier": "c", "classifier_scale": 3.0},
    {"classifier": "c", "eta": 1.0},
    {"eta": 1.0},
]
CONDITIONAL = [{"guidance": 1.5}, {"guidance": 1.0, "guide": "early", "classifier": "c"}]


def request_args(model: LoadedModel = MODEL, indices=range(2), klass: int | None = None, **values):
    """Return the settings, indices and condition of a request, the arguments of `Engine.add`."""
    settings, condition = SampleSettings(**values), None
    if klass is not None:
        condition = labels_condition(model.artefact, torch.full((len(indices),), klass), len(indices))
    return settings, indices, condition or mixed_condition(model.artefact, settings, indices)


def separate_run(model: LoadedModel, job: Job) -> torch.Tensor:
    return generate(model, job.settings, job.indices, job.condition, CPU)


def run_until_empty(engine: Engine) -> list[Job]:
    """Step until no job is left. Return the jobs in the order in which they ended."""
    ended = []
    while engine.jobs:
        ended += engine.step().ended
    return ended


def assert_matches_separate_run(model: LoadedModel, job: Job) -> None:
    assert job.error is None
    assert job.images is not None
    batch_sizes: list[int] = []
    separate = separate_run(counting(model, batch_sizes), job)
    assert int((job.images.int() - separate.int()).abs().max()) <= 1
    assert sum(batch_sizes) == len(job) * job.nfe


class BatchedRequests(RuleBasedStateMachine):
    """Requests of any kind are added, cancelled and advanced in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_sizes: list[int] = []
        self.engine = Engine(counting(MODEL, self.batch_sizes), CPU, rows=12, max_images=40)
        self.running: list[Job] = []
        self.ended: list[Job] = []

    @rule(
        sampler=st.sampled_from([("ddim", 0.7), ("ddim", 1.0), *((name, 0.0) for name in SAMPLERS)]),
        steps=st.integers(1, 6),
        spacing=st.sampled_from(["uniform", "ddim-quadratic"]),
        guidance=st.sampled_from([0.0, 0.0, 0.5, 3.0]),
        interval=st.sampled_from([None, (0.0, 0.7), (0.3, 4.0), (1e-6, 1e-5)]),
        klass=st.sampled_from([None, 0, 7]),
        noise=st.sampled_from(["small", "large", "learned"]),
        first=st.integers(0, 50),
        count=st.integers(1, 9),
        seed=st.integers(0, 3),
    )
    def add(self, sampler, steps, spacing, guidance, interval, klass, noise, first, count, seed):
        name, eta = sampler
        chosen = {"sampler": name, "eta": eta if steps > 1 else 0.0, "noise": noise, "guidance": guidance}
        chosen |= {"guidance_interval": interval, "spacing": spacing if steps > 1 else "uniform"}
        request = request_args(MODEL, range(first, first + count), klass, steps=steps, seed=seed, **chosen)
        held = sum(map(len, self.running))
        if held + count > 40:
            with pytest.raises(Full, match=f"^{held} images are being made"):
                self.engine.add(*request)
        else:
            self.running.append(self.engine.add(*request))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99))
    def cancel(self, which):
        job = self.running.pop(which % len(self.running))
        self.engine.cancel(job)
        assert job.ended
        assert job.images is None

    @precondition(lambda self: self.running)
    @rule(passes=st.integers(1, 4))
    def step(self, passes):
        for _ in range(passes):
            self.batch_sizes.clear()
            made = self.engine.step()
            assert made.rows == sum(self.batch_sizes) <= 12
            assert bool(made.rows) == bool(self.running)
            for job in made.ended:
                self.running.remove(job)
                self.ended.append(job)

    @invariant()
    def held_counts_the_running_jobs(self):
        assert self.engine.held == sum(map(len, self.running))
        assert not any(job.ended for job in self.running)

    def teardown(self):
        ended = self.ended + run_until_empty(self.engine)
        for job in ended:
            assert_matches_separate_run(MODEL, job)
        assert {id(job) for job in ended} >= {id(job) for job in self.running}
        assert self.engine.held == 0


TestBatchedRequests = BatchedRequests.TestCase
TestBatchedRequests.settings = hypothesis_settings(max_examples=12, stateful_step_count=12, deadline=None)


def test_short_request_is_not_delayed_by_a_long_one():
    with closing(Engine(MODEL, CPU, rows=8)) as engine:
        long = engine.add(*request_args(indices=range(32), steps=50))
        for _ in range(10):
            engine.step()
        short = engine.add(*request_args(indices=[3], steps=2))
        passes = 0
        while not short.ended:
            engine.step()
            passes += 1
        assert passes <= 4
        assert not long.ended
        assert_matches_separate_run(MODEL, short)
        engine.cancel(long)


def test_parallel_halves_give_the_same_images(monkeypatch):
    monkeypatch.setattr("diffusion.engine.engine.splitting_helps", lambda device: True)
    with closing(Engine(MODEL, CPU)) as engine:
        jobs = [engine.add(*request_args(indices=range(count), steps=4, eta=1.0)) for count in (1, 6)]
        run_until_empty(engine)
    for job in jobs:
        assert_matches_separate_run(MODEL, job)


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="no bf16 in this processor")
@pytest.mark.parametrize("values", [{"steps": 5, "eta": 1.0}, {"steps": 20}], ids=str)
def test_bf16_batching_changes_few_bytes_by_little(values):
    """The changes are within the limits in docs/serving.md. Images of another seed are far outside."""
    spec = spec_of()
    process = ProcessConfig(timesteps=100, variance="learned", loss="hybrid", prediction="velocity")
    model = LoadedModel(network_of(spec), artefact_of(spec, precision="bf16", process=process))
    with closing(Engine(model, CPU)) as engine:
        jobs = []
        for number in range(8):
            jobs.append(engine.add(*request_args(model, range(2 * number, 2 * number + 2), **values)))
            engine.add(*request_args(model, range(number % 3 + 1), steps=7 + number, eta=1.0, seed=5))
            engine.step()
        run_until_empty(engine)
        other = engine.add(*request_args(model, range(16), seed=1, **values))
    batched = torch.cat([job.images for job in jobs]).int()
    separate = torch.cat([separate_run(model, job) for job in jobs]).int()
    difference, other_seed = (batched - separate).abs(), (separate_run(model, other).int() - separate).abs()
    assert float((difference > 0).float().mean()) < MAX_BF16_CHANGED
    assert float((difference > 1).float().mean()) < MAX_BF16_FAR
    assert float((other_seed > 1).float().mean()) > 10 * MAX_BF16_CHANGED


class NaNForClass3(torch.nn.Module):
    """The network, with NaN as the output for images of class 3."""

    def forward(self, x, t, labels):
        return torch.where((labels == 3).reshape(-1, 1, 1, 1), torch.nan, MODEL.network(x, t, labels))


def test_nonfinite_values_fail_only_their_own_request():
    model = LoadedModel(NaNForClass3(), MODEL.artefact)
    with closing(Engine(model, CPU)) as engine:
        intact = engine.add(*request_args(klass=2, steps=4))
        broken = engine.add(*request_args(klass=3, indices=[8, 9], steps=4))
        ended = run_until_empty(engine)
    assert ended == [broken, intact]
    assert isinstance(broken.error, NonFiniteError)
    assert "image 8 is NaN or infinite from step 1 on" in str(broken.error)
    assert_matches_separate_run(MODEL, intact)


def failing(settings: SampleSettings):
    """Return a sampler that raises an error at its second step."""

    def trajectory(grid, x, noise):
        for done, step in enumerate(grid.reverse_steps(), start=1):
            prediction = yield DenoiserCall(x, step.t)
            if done == 2:
                raise ZeroDivisionError("a fault")
            yield Step(done, len(grid), prediction.x0, prediction.x0)

    return trajectory


def test_failing_sampler_fails_only_its_own_request(monkeypatch):
    monkeypatch.setitem(SAMPLERS.data, "failing", SamplerEntry("tests.engine.test_engine:failing"))
    with closing(Engine(MODEL, CPU)) as engine:
        broken = engine.add(*request_args(sampler="failing", indices=range(CHUNK_SIZE + 3), steps=4))
        intact = engine.add(*request_args(steps=4))
        ended = run_until_empty(engine)
    assert ended == [broken, intact]
    assert isinstance(broken.error, ZeroDivisionError)
    assert_matches_separate_run(MODEL, intact)


def failing_calls(shape: bool):
    """Return a sampler whose second call has x of another shape, or a loss that raises an error."""

    def raise_error(x0_hat: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("a fault")

    def trajectory(grid, x, noise):
        for done, step in enumerate(grid.reverse_steps(), start=1):
            is_bad = done == 2
            x_call = x[:, :, 1:] if is_bad and shape else x
            prediction = yield DenoiserCall(x_call, step.t, raise_error if is_bad and not shape else None)
            yield Step(done, len(grid), prediction.x0, prediction.x0)

    return trajectory


@pytest.mark.parametrize("shape", [True, False])
def test_a_pass_with_a_failing_call_is_repeated_for_the_other_requests(shape):
    """Also the state of APG, the difference before, advances once a call."""
    custom = CustomTrajectory(lambda rows: failing_calls(shape))
    with closing(Engine(MODEL, CPU)) as engine:
        intact = [engine.add(*request_args(steps=4, guidance=2.0, guidance_rule="apg", klass=1))]
        broken = engine.add(*request_args(steps=4), custom)
        intact += [engine.add(*request_args(steps=4, eta=1.0, seed=2))]
        ended = run_until_empty(engine)
    assert ended[0] is broken
    assert isinstance(broken.error, (ZeroDivisionError, RuntimeError))
    for job in intact:
        assert_matches_separate_run(MODEL, job)


def test_failing_network_fails_only_the_requests_of_its_forward_pass():
    def broken(x, t, labels):
        raise MemoryError("no room")

    with closing(Engine(LoadedModel(broken, MODEL.artefact), CPU, rows=2)) as engine:  # type: ignore[arg-type]
        first, second = (engine.add(*request_args(steps=4)) for _ in range(2))
        assert engine.step().ended == [first]
        assert isinstance(first.error, MemoryError)
        assert not second.ended


def test_requests_are_added_and_cancelled_during_a_forward_pass():
    inside, proceed = threading.Event(), threading.Event()

    def slow(x, t, labels):
        inside.set()
        assert proceed.wait(30)
        return MODEL.network(x, t, labels)

    with closing(Engine(LoadedModel(slow, MODEL.artefact), CPU)) as engine:  # type: ignore[arg-type]
        cancelled, kept = engine.add(*request_args(steps=2)), engine.add(*request_args(steps=3, seed=1))
        thread = threading.Thread(target=engine.step)
        thread.start()
        assert inside.wait(30)
        engine.cancel(cancelled)
        joined = engine.add(*request_args(steps=2, seed=2))
        assert engine.held == 4
        proceed.set()
        thread.join()
        run_until_empty(engine)
    assert cancelled.images is None
    assert_matches_separate_run(MODEL, kept)
    assert_matches_separate_run(MODEL, joined)


def test_custom_trajectory_uses_its_start_and_end():
    """DDIM encoding and decoding, batched with another request, match separate runs."""
    images = torch.rand(CHUNK_SIZE + 1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    settings, indices, condition = request_args(indices=range(CHUNK_SIZE + 1), steps=5, clip=False)
    with closing(Engine(MODEL, CPU)) as engine:
        other = engine.add(*request_args(steps=3, eta=1.0))
        encoded = engine.add(
            settings, indices, condition, CustomTrajectory(lambda rows: encoding, images, lambda x: x)
        )
        run_until_empty(engine)
        assert encoded.images is not None
        decoding = CustomTrajectory(lambda rows: build_sampler(settings), encoded.images)
        decoded = engine.add(settings, indices, condition, decoding)
        run_until_empty(engine)
    grid = check_settings(MODEL.artefact, settings)
    exact = walk(model_denoiser(MODEL), grid, lambda: images, encoding, condition)
    torch.testing.assert_close(encoded.images, exact, rtol=1e-4, atol=1e-4)
    expected = decode_images(MODEL, settings, encoded.images, condition)
    assert decoded.images is not None
    assert int((decoded.images.int() - expected.int()).abs().max()) <= 1
    assert_matches_separate_run(MODEL, other)


@pytest.mark.parametrize(("spacing", "dtype"), [("karras", torch.float64), ("uniform", torch.int64)])
def test_times_reach_the_denoiser_without_rounding(spacing, dtype):
    job = Job(MODEL, CPU, NO_GUIDES, *request_args(steps=5, spacing=spacing))
    job.split(len(job))
    (chunk,) = job.chunks
    times = []

    def denoiser(x, t, condition):
        times.append(t)
        return Prediction(x, x)

    while chunk.x_0 is None:
        t = chunk.pending_call().t
        chunk.advance(batched_forward(denoiser, [chunk]))
        assert times[-1].dtype == dtype
        assert times[-1].tolist() == [t] * len(job)


def model_of(seed: int, **changes: object) -> LoadedModel:
    spec = spec_of(**changes)
    return LoadedModel(network_of(spec, seed), artefact_of(spec))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [{}, FREE], ids=["conditional", "unconditional"])
@pytest.mark.parametrize("rows", [5, 64])
def test_requests_with_different_guides_share_passes_and_match_separate_runs(classes, rows):
    model, guides = model_of(0, **classes), Guides(model_of(1, **classes), loaded_classifier())
    jobs: list[Job] = []
    with closing(Engine(model, CPU, rows=rows, guides=guides)) as engine:
        for number, values in enumerate(REQUESTS if classes else [*REQUESTS, *CONDITIONAL]):
            settings = SampleSettings(steps=4, seed=number, **values)
            labelled = guides.labelled(model) if settings.has_classifier else model.artefact
            jobs.append(engine.add(settings, range(3), mixed_condition(labelled, settings, range(3))))
        total = 0
        while engine.jobs:
            made = engine.step()
            assert made.rows <= rows
            total += made.rows
    assert total == sum(len(job) * job.nfe for job in jobs)
    for job in jobs:
        assert job.error is None
        assert job.images is not None
        assert job.nfe == count_nfe(job.settings, model.artefact.process)
        alone = generate(model, job.settings, job.indices, job.condition, CPU, guides=guides)
        assert int((job.images.int() - alone.int()).abs().max()) <= 1


@pytest.mark.parametrize("values", [{"guidance": 1.0, "guide": "early"}, {"classifier": "c"}])
def test_a_request_for_a_missing_guide_is_refused(values):
    model, settings = model_of(0), SampleSettings(steps=2, **values)
    with closing(Engine(model, CPU)) as engine, pytest.raises(UsageError, match="needs the"):
        engine.add(settings, range(1), mixed_condition(model.artefact, settings, range(1)))
