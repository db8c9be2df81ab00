"""Classifier guidance: Bayes' rule for two Gaussians, the network, its training and its stage."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffusion.images.store import ImageStore
from diffusion.model.classifier import AttentionPool, load_classifier
from diffusion.model.model_file import LoadedModel, load_model, read_artefact, save_artefact
from diffusion.process.denoiser import Condition
from diffusion.process.objective import TrainedNetwork
from diffusion.process.process_registry import ProcessConfig
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.classifier_guidance import classifier_gradient, shift_eps, shift_mean
from diffusion.sample.conditions import labels_condition
from diffusion.sample.ddim import Ddim
from diffusion.sample.generate import generate
from diffusion.sample.guides import Guides
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.train.batch import ImageLoader, draw_batch
from diffusion.train.classifier_training import ClassifierPlan, plan_classifier
from diffusion.train.initial_state import new_state
from diffusion.train.train_config import ClassifierSections
from tests.helpers import papers
from tests.helpers.invoke import Invoke, assert_refused
from tests.helpers.networks import artefact_of, loaded_classifier, network_of, randomise, spec_of
from tests.helpers.prepared import copy_data
from tests.helpers.trajectories import OnGrid, grid_of, network_denoiser, randn, walk

CPU = torch.device("cpu")
SHAPE = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,)}
SECTION = {
    "model": {**SHAPE, "head_channels": 8},
    "train": {"steps": 12, "batch_size": 8, "lr": 0.002, "weight_decay": 0.05},
}


class TwoGaussians:
    """One-pixel data of two classes, N(±0.5, 0.1²): the classifier and ε of each class have closed forms."""

    def __init__(self, grid: TimeGrid) -> None:
        self.grid = grid
        self.classes = [papers.GaussianData(-0.5, 0.1), papers.GaussianData(0.5, 0.1)]

    def logits(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """log p(x_t | y) of each class; equal shares make them logits of p(y | x_t)."""
        alpha_bar = self.grid.alphas_cumprod[t]
        columns = [
            -((x.reshape(-1) - alpha_bar.sqrt() * data.mean) ** 2) / (2 * data.marginal(alpha_bar))
            for data in self.classes
        ]
        return torch.stack(columns, 1)

    def eps(self, x, t):
        """ε of each class."""
        alpha_bar = float(self.grid.alphas_cumprod[t[0]])
        return torch.stack([data.eps(x, alpha_bar) for data in self.classes])

    def conditional(self, x, t, labels):
        return self.eps(x, t)[labels, torch.arange(len(x))]

    def unconditional(self, x, t, labels):
        """ε of the mixture: the classes' by their posterior."""
        return (self.logits(x, t).softmax(1).T.reshape(2, -1, 1, 1, 1) * self.eps(x, t)).sum(0)


@pytest.mark.parametrize("t", [0, 100, 999])
def test_algorithm_2_with_the_exact_classifier_is_bayes_rule(t):
    grid = grid_of("cosine", 1000)
    data = TwoGaussians(grid)
    x, labels = randn(8, 1, 1, 1), torch.arange(8) % 2
    at = torch.full((8,), t)
    gradient = classifier_gradient(lambda x, t: data.logits(x, t), 1.0)
    guided = shift_eps(network_denoiser(data.unconditional, grid), gradient, OnGrid(grid))
    output = guided(x, at, Condition(8, labels))
    assert torch.allclose(output.eps, data.conditional(x, at, labels), atol=1e-4)
    alpha, sigma = grid.alpha[t], grid.sigma[t]
    assert torch.allclose(alpha * output.x0 + sigma * output.eps, x, atol=1e-9)


@pytest.mark.slow
def test_guided_samples_of_a_mixture_have_the_requested_class():
    """With algorithm 1, in noisy steps."""
    grid = grid_of("linear", 1000)
    data = TwoGaussians(grid)
    gradient = classifier_gradient(data.logits, 1.0)
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2

    guided = shift_mean(network_denoiser(data.unconditional, grid), gradient)
    draw = partial(torch.randn, 400, 1, 1, 1, generator=source, dtype=torch.float64)
    x = walk(guided, grid, draw, Ddim(1.0, clip=False), Condition(400, labels))
    for label, mean in ((0, -0.5), (1, 0.5)):
        of_class = x[labels == label]
        assert float(of_class.mean()) == pytest.approx(mean, abs=0.05)
        assert float(of_class.std()) == pytest.approx(0.1, abs=0.03)


def test_attention_pool_queries_with_the_mean():
    pool = AttentionPool(8, 12, 2, 5)
    randomise(pool)
    x = torch.randn(3, 8, 3, 4, generator=torch.Generator().manual_seed(0))
    tokens = torch.cat([x.flatten(2).mean(2)[:, None], x.flatten(2).transpose(1, 2)], 1) + pool.positions
    q, k, v = F.linear(tokens, pool.qkv.weight, pool.qkv.bias).chunk(3, 2)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = q[:, :1, head] @ k[:, :, head].transpose(1, 2) / 2
        heads.append(scores.softmax(-1) @ v[:, :, head])
    expected = pool.project(torch.cat(heads, 2)[:, 0])
    assert torch.allclose(pool(x), expected, atol=1e-5)


@pytest.mark.parametrize("sampler", [{"eta": 0.0}, {"eta": 1.0}])
@pytest.mark.parametrize("classes", [0, 10])
def test_guidance_changes_images_and_image_i_does_not_depend_on_the_batch(sampler, classes):
    spec = spec_of(num_classes=classes, null_class=False)
    loaded = LoadedModel(network_of(spec), artefact_of(spec))
    classifier = loaded_classifier()
    settings = SampleSettings(steps=5, seed=1, classifier="c", classifier_scale=5.0, **sampler)
    condition = labels_condition(loaded.artefact, torch.tensor([3, 7, 1]), 3)
    guides = Guides(classifier=classifier)
    guided = generate(loaded, settings, range(3), condition, CPU, guides=guides)
    alone = generate(loaded, settings, [1], condition.rows(slice(1, 2)), CPU, guides=guides)
    assert int((guided[1:2].int() - alone.int()).abs().max()) <= 1
    off = settings.model_copy(update={"classifier_scale": 0.0})
    plain = generate(loaded, off, range(3), condition if classes else condition.unlabelled(), CPU)
    assert not torch.equal(guided, plain)


@pytest.mark.parametrize(
    ("changes", "process", "message"),
    [
        (
            {"image_size": 16, "attention_resolutions": (8,)},
            {},
            "takes 16×16×1 images, the model makes 8×8×1",
        ),
        ({"in_channels": 3}, {}, "takes 8×8×3 images"),
        ({}, {"timesteps": 50}, r"cosine \(timesteps 50,"),
        ({}, {"schedule": "linear"}, "the noise of linear"),
        ({"num_classes": 9, "out_channels": 9}, {}, "other classes"),
    ],
)
def test_a_classifier_for_other_images_or_noise_is_refused(changes, process, message):
    classifier = loaded_classifier(**changes)
    noised_by = ProcessConfig(**{"timesteps": 100, **process})
    classifier = classifier._replace(artefact=classifier.artefact.model_copy(update={"process": noised_by}))
    spec, settings = spec_of(), SampleSettings(steps=2, classifier="c")
    model, guides = LoadedModel(network_of(spec), artefact_of(spec)), Guides(classifier=classifier)
    with pytest.raises(UsageError, match=message):
        generate(model, settings, [0], Condition(1, torch.tensor([0])), CPU, guides=guides)


def test_a_model_file_is_no_classifier_and_the_reverse(tmp_path):
    classifier = loaded_classifier()
    save_artefact(tmp_path / "c.safetensors", classifier.network.state_dict(), classifier.artefact)
    again = load_classifier(tmp_path / "c.safetensors")
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([1, 2])
    assert torch.equal(again.network(x, t), classifier.network(x, t))
    with pytest.raises(DiffctlError, match=r"c\.safetensors holds a classifier"):
        load_model(tmp_path / "c.safetensors")
    spec = spec_of()
    save_artefact(tmp_path / "m.safetensors", network_of(spec).state_dict(), artefact_of(spec))
    with pytest.raises(DiffctlError, match=r"m\.safetensors holds a diffusion model"):
        load_classifier(tmp_path / "m.safetensors")
    assert read_artefact(tmp_path / "m.safetensors").network == spec


def resolved(store: ImageStore, section: dict[str, Any] = SECTION, **train: Any) -> ClassifierPlan:
    classifier = {**section, "train": {**section["train"], **train}}
    values = {"data": {"name": "digits"}, "process": {}, "classifier": classifier}
    return plan_classifier(ClassifierSections.model_validate(values), store.meta, CPU)


def test_losses_are_cross_entropy_and_accuracy_per_image(store):
    plan = resolved(store)
    network = loaded_classifier().network
    state = new_state(plan, CPU)
    batch = draw_batch(plan, state.time_sampler, ImageLoader(store, CPU), 0)
    process = state.objective.process
    losses = state.objective(TrainedNetwork(network, process), batch, 0)
    assert list(losses) == ["loss", "accuracy"]
    logits = network(process.q_sample(batch.x_0, batch.t, batch.noise), batch.t)
    p = logits.double().softmax(1)[torch.arange(8), batch.labels]
    assert torch.allclose(losses["loss"].double(), -p.log(), atol=1e-5)
    assert losses["accuracy"].tolist() == [
        float(guess == label) for guess, label in zip(logits.argmax(1), batch.labels, strict=True)
    ]


def test_data_without_classes_is_refused(store):
    meta = {**store.meta, "name": "faces", "classes": [], "counts": []}
    few = ImageStore(store.path, store.images, None, meta)
    with pytest.raises(UsageError, match="at least two classes, and faces has 0"):
        resolved(few)
    odd = ImageStore(store.path, store.images, store.labels, {**store.meta, "image_size": 9})
    with pytest.raises(UsageError, match=r"classifier.model: .*must be divisible by 2"):
        resolved(odd)


@pytest.mark.slow
def test_the_stage_trains_a_classifier_that_guides_samples(project: Path, invoke: Invoke) -> None:
    copy_data(project)
    assert_refused(invoke("stage", "classifier"), "no classifier section")
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(f"{text}\nclassifier: {json.dumps(SECTION)}\n")
    assert invoke("stage", "classifier").code == 0
    made = project / "models/classifier.safetensors"
    first = made.read_bytes()
    assert "resuming after step 12 of 12" in invoke("stage", "classifier").err
    assert made.read_bytes() == first
    spec, process = spec_of(), {"process": ProcessConfig(), "data": load_classifier(made).artefact.data}
    artefact = artefact_of(spec).model_copy(update=process)
    save_artefact(project / "models/model.safetensors", network_of(spec).state_dict(), artefact)
    images = []
    for name, options in (("a.npz", ()), ("b.npz", ("--classifier", str(made), "--classifier-scale", "9"))):
        assert invoke("sample", "--num", "2", "--steps", "3", "--out", name, *options).code == 0
        images.append(np.load(project / name)["arr_0"])
    assert not np.array_equal(*images)
