"""Steps on a GPU: nothing waits; images, features and distances are those of a CPU."""

import warnings
from contextlib import closing

import numpy as np
import pytest
import torch

from diffusion.engine.engine import Engine
from diffusion.evaluate.features.extractors import extract, load_extractor
from diffusion.evaluate.scores.kernel_distance import Kernel, kernel_distance, own_sums, subsets
from diffusion.evaluate.scores.moments import frechet_distance, statistics
from diffusion.model.model_file import LoadedModel
from diffusion.model.precision import CompiledNetwork, freeze
from diffusion.process.denoiser import Condition
from diffusion.process.noise import ImageNoise
from diffusion.protocol.card import subset_size
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import mixed_condition
from diffusion.sample.generate import check_settings, denoiser_builder, generate
from diffusion.sample.guides import Guides
from diffusion.sample.sampler import NaNGuard, build_sampler, run_sampler
from diffusion.system.devices import to_device
from diffusion.system.errors import DiffctlWarning
from diffusion.system.threads import prefetch, prefetched_draws
from diffusion.train.batch import ImageLoader, batches
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.forward_passes import ForwardPasses
from diffusion.train.initial_state import new_state
from diffusion.train.observers import AsyncMetrics
from diffusion.train.train_step import train_step
from tests.gpu.devices import CPU, DEVICES, GPU, SLOW_ON_CPU, exactly, waiting_fails
from tests.helpers.digits_sweep import real_digits
from tests.helpers.networks import artefact_of, loaded_classifier, network_of, spec_of
from tests.helpers.process_pair import TRAININGS
from tests.helpers.trainings import plan_of

NEAR, SPARE = 8, 0.05  # grey levels; tolerance of the share of such pixels


@pytest.mark.parametrize("device", DEVICES)
def test_expanded_tensor_is_copied_to_the_device(device):
    assert to_device(torch.arange(3.0).expand(4, -1), device).tolist() == [[0, 1, 2]] * 4


def a_model(device: torch.device) -> LoadedModel:
    return LoadedModel(freeze(network_of(spec_of()).to(device)), artefact_of(spec_of()))


def a_classifier(device: torch.device) -> LoadedModel:
    """One of that model's classes."""
    classifier = loaded_classifier()
    return classifier._replace(network=classifier.network.to(device))


@pytest.mark.parametrize("device", SLOW_ON_CPU)
@pytest.mark.parametrize("values", [{"eta": 0.0}, {"eta": 1.0}, {"sampler": "dpm-solver++"}])
@pytest.mark.parametrize(
    "guidance",
    [
        {},
        {"guidance": 1.5},
        {"guidance": 1.5, "guidance_interval": (0.3, 5.0)},
        {"classifier": "c", "classifier_scale": 2.0},
        {"guidance": 1.5, "classifier": "c"},
    ],
    ids=str,
)
def test_a_sampling_step_does_not_synchronise(device, values, guidance) -> None:
    model, settings = a_model(device), SampleSettings(steps=5, **guidance, **values)
    classifier = a_classifier(device) if settings.has_classifier else None
    grid = check_settings(model.artefact, settings)
    denoiser = denoiser_builder(model, settings, Guides(classifier=classifier))()
    noise, watch = ImageNoise(0, range(4), (1, 8, 8)), NaNGuard()
    watch.raise_pending = lambda: None
    condition = Condition(4, torch.arange(4), 10)
    with prefetched_draws(lambda: to_device(noise.draw(), device), settings.steps, device) as draw:
        there = condition.to(device)
        with waiting_fails(device):
            trajectory = build_sampler(settings)(grid, draw(), draw)
            made = run_sampler(trajectory, denoiser, there, guard=watch)
    assert made.x.device.type == device.type


@pytest.mark.parametrize("changes", TRAININGS.values(), ids=TRAININGS)
@pytest.mark.parametrize("device", SLOW_ON_CPU)
def test_a_training_step_does_not_synchronise(device, changes, store) -> None:
    """Neither does the thread that draws the next batches."""
    train = {**changes["train"], "batch_size": 8, "microbatch": 4}
    plan = plan_of(store, **{**changes, "train": train})
    state, group, coming_means = new_state(plan, device), ProcessGroup(device), AsyncMetrics()
    passes, data = ForwardPasses(plan, state.network, state.objective, group), ImageLoader(store, device)
    coming = batches(plan, state.time_sampler, data, range(4), passes.share)
    coming_means.add(train_step(state, passes, next(coming)))
    with waiting_fails(device):
        for batch in coming:
            coming_means.add(train_step(state, passes, batch))
    assert len(list(coming_means.arrived(everything=True))) == 4


@pytest.mark.parametrize("device", SLOW_ON_CPU)
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_float32_images_equal_the_cpus_to_one_grey_level(device, eta, guidance) -> None:
    settings = SampleSettings(steps=6, eta=eta, guidance=guidance, seed=1)
    made = []
    with exactly(device):
        for place in (CPU, device):
            model = a_model(place)
            condition = mixed_condition(model.artefact, settings, range(8))
            made.append(generate(model, settings, range(8), condition, place))
    assert int((made[0].int() - made[1].int()).abs().max()) <= 1


@pytest.mark.parametrize("device", SLOW_ON_CPU)
def test_an_engine_batches_guided_and_unguided_rows(device) -> None:
    """Their times and weights come from the host."""
    model, jobs = a_model(device), []
    with exactly(device), closing(Engine(model, device)) as engine:
        for guidance, eta in ((0.0, 1.0), (1.5, 0.0)):
            settings = SampleSettings(steps=4, guidance=guidance, eta=eta)
            jobs.append(engine.add(settings, range(3), mixed_condition(model.artefact, settings, range(3))))
        while engine.jobs:
            engine.step()
        alone = [generate(model, job.settings, job.indices, job.condition, device) for job in jobs]
    for job, images in zip(jobs, alone, strict=True):
        assert job.images is not None, job.error
        assert int((job.images.int() - images.int()).abs().max()) <= 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_prefetch_changes_neither_batches_nor_their_order(device, share, store, monkeypatch) -> None:
    monkeypatch.setattr("diffusion.train.batch.DEVICE_SHARE", share)
    batches = ImageLoader(store, device)
    draws = [torch.randint(50, (7,), generator=torch.Generator().manual_seed(step)) for step in range(30)]
    reads = [lambda rows=rows: (batches[rows],) for rows in draws]
    fetched = list(prefetch(reads, device, depth=3))
    assert len(fetched) == 30
    for rows, (batch,) in zip(draws, fetched, strict=True):
        assert torch.equal(batch.cpu(), torch.from_numpy(store.images[rows.numpy()].transpose(0, 3, 1, 2)))


@pytest.mark.parametrize("device", [GPU])  # the CPU has no graphs, and compiles for a minute
def test_a_compiled_network_gives_the_same_output(device) -> None:
    """Also with a recorded graph, for different images."""
    network, labels = a_model(device).network, torch.arange(4).to(device)
    fast, t = CompiledNetwork(network), torch.full((4,), 7, device=device)
    several = [torch.randn(4, 1, 8, 8, device=device) for _ in range(6)]
    with exactly(device), torch.no_grad(), warnings.catch_warnings(category=DiffctlWarning):
        warnings.simplefilter("error", DiffctlWarning)  # it went without
        found = [fast(x, t, labels) for x in several]
        for x, output in zip(several, found, strict=True):
            assert torch.allclose(output, network(x, t, labels), atol=1e-4)


def images(device: torch.device, precision: str, count: int) -> torch.Tensor:
    """Return images of the same model."""
    model = a_model(device)._replace(artefact=artefact_of(spec_of(), precision=precision))
    settings = SampleSettings(steps=6, eta=1.0, seed=1)
    condition = mixed_condition(model.artefact, settings, range(count))
    return generate(model, settings, range(count), condition, device).int()


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_images_are_as_near_to_float32_as_on_a_cpu(device) -> None:
    exact = images(CPU, "fp32", 16)
    with exactly(device):
        shares = [((images(at, "bf16", 16) - exact).abs() <= NEAR).float().mean() for at in (device, CPU)]
    assert shares[0] >= shares[1] - SPARE
    assert shares[1] > 0.5, "otherwise the test is meaningless"


@pytest.mark.parametrize("device", SLOW_ON_CPU)
def test_scores_equal_the_cpus(device) -> None:
    """The CPU itself uses another batch size, which changes rounding only."""
    pictures, _ = real_digits()
    count = 60 if device.type == "cpu" else 600
    noise = np.random.default_rng(0).integers(-30, 31, pictures[:count].shape)
    made = (pictures[:count].astype(int) + noise).clip(0, 255).astype(np.uint8)
    ours, theirs = load_extractor("effnet-lite0-64", device=device), load_extractor("effnet-lite0-64")
    with exactly(device):
        found = distances(*(extract(ours, part, 16).features for part in (made, pictures[count : 2 * count])))
    wanted = distances(*(extract(theirs, part).features for part in (made, pictures[count : 2 * count])))
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    assert found[1] == pytest.approx(wanted[1], rel=1e-3)


def distances(features: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Return the Fréchet and the kernel distance."""
    drawn = subsets(len(features), len(real), subset_size(len(features), len(real)))
    kernel = kernel_distance(
        Kernel(features, features), Kernel(features, real), drawn, own_sums(Kernel(real, real), drawn[1])
    )
    return frechet_distance(statistics(features), statistics(real)), float(kernel.mean())
