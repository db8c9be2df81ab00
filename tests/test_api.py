"""The library for scripts: the programs in the docs, and small models with a known answer."""

import re
import textwrap
from typing import Any

import numpy as np
import pytest
import torch

import diffctl
from diffusion import api
from diffusion.api import PointNetwork, ProcessConfig, SampleSettings, UNetSpec, build_process, fit, sample
from diffusion.process.process_registry import EDMConfig, FlowConfig
from diffusion.system.errors import UsageError
from diffusion.train.fit import UNUSED
from diffusion.train.initial_state import new_state
from diffusion.train.train_config import TrainConfig
from tests.conftest import ROOT, run_python
from tests.helpers.trainings import CPU, plan_of, run

(PROGRAM,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/library.md").read_text(), re.M | re.S)
PROCESS = build_process(ProcessConfig(timesteps=50, variance="small", loss="simple", prediction="velocity"))
FLOW = build_process(FlowConfig(schedule="flow"))


@pytest.mark.slow
def test_classes_are_learned_and_image_i_depends_on_its_index_alone() -> None:
    labels = torch.arange(400) % 2
    points = torch.where(labels == 1, 0.7, -0.7)[:, None, None, None] + torch.zeros(400, 2, 1, 1)
    torch.manual_seed(0)
    network = PointNetwork(timesteps=50, classes=3, width=64)
    rate = {"schedule": "cosine", "rate": 0.01}
    options = {"steps": 300, "lr": rate, "ema_decay": 0.97, "batch_size": 64, "p_uncond": 0.1}
    model = fit(network, PROCESS, points, labels, **options)
    settings, wanted = SampleSettings(steps=10, guidance=0.5), torch.tensor([0, 1, 1, 0])
    made = sample(model, PROCESS, 4, (2, 1, 1), settings, wanted, null_label=2)
    assert torch.allclose(made.mean(dim=(1, 2, 3)), 1.4 * wanted - 0.7, atol=0.15)
    first = sample(model, PROCESS, 2, (2, 1, 1), settings, wanted[:2], null_label=2)
    assert torch.allclose(made[:2], first, atol=1e-5)
    with pytest.raises(UsageError, match="guidance needs"):
        sample(model, PROCESS, 4, (2, 1, 1), settings, wanted)
    for further in ({"classifier": "c.safetensors"}, {"cond_noise": 0.1}):
        with pytest.raises(UsageError, match=f"sample: {next(iter(further))} is an option of model files"):
            sample(model, PROCESS, 1, (2, 1, 1), SampleSettings(**further))


@pytest.mark.parametrize("given", [{"guidance": 1.0}, {"guide": "early"}])
def test_a_guide_without_effect_is_refused(given) -> None:
    with pytest.raises(UsageError, match="sample: the guide has no effect"):
        sample(PointNetwork(), PROCESS, 1, (2, 1, 1), SampleSettings(**given), guide=PointNetwork())


def test_dropout_is_off_in_samples_and_each_module_keeps_its_mode() -> None:
    network = PointNetwork(width=8)
    network.layers.insert(1, torch.nn.Dropout(0.5))
    network.layers[0].eval()
    modes = [module.training for module in network.modules()]
    assert any(modes)
    three, one = (sample(network, PROCESS, count, (2, 1, 1), SampleSettings(steps=3)) for count in (3, 1))
    assert torch.allclose(three[:1], one, atol=1e-5)
    assert [module.training for module in network.modules()] == modes


@pytest.mark.slow
def test_continuous_process_is_learned() -> None:
    points = torch.tensor([0.7, -0.7])[:, None, None, None].repeat(200, 2, 1, 1)
    torch.manual_seed(0)
    rate = {"schedule": "cosine", "rate": 0.01}
    model = fit(PointNetwork(width=64), FLOW, points, steps=300, lr=rate, ema_decay=0.97)
    made = sample(model, FLOW, 40, (2, 1, 1), SampleSettings(sampler="heun", steps=20))
    assert (made.abs() - 0.7).abs().median() < 0.1
    assert 10 < (made[:, 0] > 0).sum() < 30


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {
            "data": {"flip": True},
            "model": {"dropout": 0.2, "low_res": 4, "cond_noise": 0.5},
            "train": {"augment": {"probability": 0.5}},
        },
        {"train": {"optimizer": "muon", "microbatch": 3, "lr": {"schedule": "linear", "rate": 0.01}}},
    ],
    ids=["augmented", "muon"],
)
def test_equal_settings_give_the_bytes_of_the_pipelines_training(store, changes) -> None:
    process = {"variance": "learned", "loss": "vlb", "t_sampler": "loss-aware", "timesteps": 4}
    plan = plan_of(store, process=process, **changes)
    state = new_state(plan, CPU)
    run(state, store)
    images = torch.tensor(store.images).permute(0, 3, 1, 2)
    given = {name: getattr(plan.train, name) for name in TrainConfig.model_fields if name not in UNUSED}
    options = {"labels": torch.from_numpy(store.labels), "flip": plan.data.flip, **given}
    losses: list[float] = []
    model = fit(
        plan.network,
        build_process(plan.process),
        images,
        callback=lambda done: losses.append(done.losses["loss"]),
        **options,
    )
    for name, weight in state.ema.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert len(losses) == plan.train.steps
    assert losses[-1] == pytest.approx(state.history[-1]["loss"], rel=0.5)


class Normed(PointNetwork):
    """A network with a norm by running statistics, fixed ones if it is `frozen`."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__(width=8)
        self.norm, self.frozen = torch.nn.BatchNorm2d(2), frozen

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        self.norm.train(self.training and not self.frozen)
        return super().forward(self.norm(x), t, labels)


def test_a_network_whose_buffers_change_in_training_is_refused_before_its_weights_change() -> None:
    points = torch.ones(20, 2, 1, 1)
    model = fit(Normed(frozen=True), FLOW, points, steps=2, batch_size=4)
    assert model.norm.num_batches_tracked == 0
    network = Normed(frozen=False)
    before = [weight.clone() for weight in network.parameters()]
    with pytest.raises(UsageError, match=r"changes the buffer norm\.running_mean, .* such as GroupNorm"):
        fit(network, FLOW, points, steps=2, batch_size=4)
    assert all(map(torch.equal, before, network.parameters()))


# A value of each setting and of what it needs, where it changes the model or its images.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "schedule": ({}, {"schedule": "linear"}),
    "timesteps": ({}, {"timesteps": 90}),
    "prediction": ({}, {"prediction": "velocity"}),
    "variance": ({}, {"variance": "learned", "loss": "hybrid"}),  # large changes the bound alone
    "loss": ({"variance": "learned", "loss": "hybrid"}, {"loss": "vlb"}),
    "t_sampler": ({}, {"t_sampler": "logit-normal"}),
    "t_sampler_options": ({"t_sampler": "log-normal"}, {"t_sampler_options": {"mean": 1.0}}),
    "stratified": ({}, {"stratified": True}),
    "weighting": ({}, {"weighting": "min-snr"}),
    "weighting_options": ({"weighting": "min-snr"}, {"weighting_options": {"gamma": 0.5}}),
    "sigma_data": ({"prediction": "edm", "sigma_data": 0.5}, {"sigma_data": 0.9}),
    "zero_terminal_snr": ({"prediction": "velocity"}, {"zero_terminal_snr": True}),
    "sigma_min": ({"schedule": "edm", "sigma_data": 0.5}, {"sigma_min": 0.5}),
    "sigma_max": ({"schedule": "edm", "sigma_data": 0.5}, {"sigma_max": 2.0}),
    "shift": ({"schedule": "flow"}, {"shift": 3.0}),
}
LEARNED = {"variance": "learned", "loss": "hybrid", "timesteps": 3}


class Doubled(PointNetwork):
    """A network with a variance."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x, t, labels).repeat(1, 2, 1, 1)


def fitted(section: dict[str, Any], **options: Any) -> list[float]:
    """Return numbers of a small network that was trained and sampled with these settings."""
    values = {"schedule": "cosine", **section}
    if values["schedule"] in ("cosine", "linear"):
        values = {"timesteps": 50, "variance": "small", "loss": "simple"} | values
    process = build_process(ProcessConfig.model_validate(values))
    torch.manual_seed(0)
    kind = Doubled if process.config.learned_variance else PointNetwork
    network = kind(classes=3, width=8)
    options = {"steps": 12, "batch_size": 16, "labels": torch.arange(60) % 2, **options}
    points = torch.linspace(-1, 1, 120).reshape(60, 2, 1, 1)
    model = fit(network, process, points, **options)
    settings = SampleSettings(steps=3, eta=1.0 if "timesteps" in values else 0.0)
    made = sample(model, process, 2, (2, 1, 1), settings, torch.tensor([0, 1]))
    return [*model.layers[-1].bias.tolist(), *made.flatten().tolist()]


@pytest.mark.slow
def test_each_setting_that_fit_accepts_has_an_effect_or_is_refused() -> None:
    sections = [type(process.config) for process in (PROCESS, FLOW, build_process(EDMConfig(schedule="edm")))]
    without_options = {"loss_options"}  # no objective of the library has any
    fields = {name for section in sections for name in section.model_fields}
    assert fields - without_options == CHANGES.keys()
    for name, (base, change) in CHANGES.items():
        assert fitted(base) != fitted(base | change), name
    loss_aware = {**LEARNED, "t_sampler": "loss-aware"}  # from the 10th loss of each t on
    assert fitted(loss_aware, steps=40) != fitted(LEARNED, steps=40)
    options = {"steps": 13, "batch_size": 17, "lr": 0.1, "ema_decay": 0.1, "seed": 1, "p_uncond": 0.5}
    options |= {
        "optimizer": "radam",
        "optimizer_options": {"beta1": 0.5},
        "grad_clip": 0.01,
        "weight_decay": 9,
    }
    for name, value in options.items():
        assert fitted({}) != fitted({}, **{name: value}), name
    of_machine = {"microbatch", "compile", "tf32", "precision"}  # change a result only by rounding
    assert {*TrainConfig.model_fields} - UNUSED == {*options, *of_machine, "augment"}
    for section, given, message in [
        ({"schedule": "flow", "shift": "auto"}, {}, "process.shift is to follow from the images: set shift"),
        ({"schedule": "edm"}, {}, "process.sigma_data is to follow"),
        ({}, {"labels": None, "p_uncond": 0.1}, "p_uncond 0.1 has no effect without labels"),
        ({}, {"save_every": 5}, "fit: save_every has no effect here"),
        ({}, {"step": 5}, r"fit: step: unknown key \(did you mean steps"),
    ]:
        with pytest.raises(UsageError, match=message):
            fitted(section, **given)


SPEC = UNetSpec(
    channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), head_channels=8,
    image_size=8, in_channels=1, out_channels=1, num_classes=3, null_class=True,
)  # fmt: skip
IMAGES, LABELS = torch.linspace(-1, 1, 8 * 64).reshape(8, 1, 8, 8), torch.arange(8) % 3
WHOLE = build_process(ProcessConfig(variance="small", loss="contrastive", prediction="velocity"))
HYBRID = build_process(ProcessConfig())


class Flat(PointNetwork):
    """A network whose output has no height and width."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x, t, labels).flatten(1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": IMAGES.numpy()}, r"images are a ndarray: give a tensor \(N, C, H, W\)"),
        ({"images": IMAGES[:, 0]}, r"images are of shape \(8, 8, 8\)"),
        ({"images": IMAGES[:0]}, r"images are of shape \(0, 1, 8, 8\)"),
        ({"images": (127 * IMAGES).long()}, "images are torch.int64: give uint8"),
        ({"images": 127 * (IMAGES + 1)}, "images have values from 0 to 254: give real numbers"),
        ({"images": IMAGES * torch.nan}, "images have NaN"),
        ({"images": torch.zeros(8, 1, 16, 16)}, "images of 1×16×16 numbers for a network of 1×8×8"),
        ({"images": torch.zeros(8, 3, 8, 8)}, "images of 3×8×8 numbers for a network of 1×8×8"),
        ({"labels": LABELS.repeat(2)}, r"labels are of shape \(16,\) for 8 images"),
        ({"labels": LABELS.tolist()}, "labels are a list for 8 images"),
        ({"labels": LABELS.float()}, "labels are torch.float32"),
        ({"labels": LABELS + 1}, "labels are from 1 to 3: the network's classes are 0 to 2"),
        ({"labels": LABELS - 1}, "labels are from -1 to 1"),
        ({"augment": {}}, "augment is a condition of the network"),
        ({"process": WHOLE, "microbatch": 2}, "process.loss contrastive needs the whole batch"),
        ({"process": HYBRID}, "returns 1 channels, and the process with loss hybrid needs 2"),
        ({"network": PointNetwork(width=8), "process": HYBRID, "labels": None,
          "images": torch.zeros(8, 2, 1, 1)}, "returns 2 channels, and the process with loss hybrid needs 4"),
        ({"network": Flat(), "labels": None, "images": torch.zeros(8, 2, 1, 1)},
         r"the network returns shape \(1, 2\) for shape \(1, 2, 1, 1\)"),
        ({"network": PointNetwork(width=8, classes=3), "p_uncond": 0.5, "images": torch.zeros(8, 2, 1, 1)},
         r"does not take the label 3 \(index out of range"),
        ({"network": PointNetwork(width=8), "augment": {}, "labels": None, "images": torch.zeros(8, 2, 1, 1)},
         "augment is a condition of the network"),
    ],
)  # fmt: skip
def test_fit_refuses_what_does_not_belong_together(given: dict[str, Any], message: str) -> None:
    usual = {
        "network": SPEC,
        "process": PROCESS,
        "images": IMAGES,
        "labels": LABELS,
        "steps": 1,
        "batch_size": 4,
    }
    with pytest.raises(UsageError, match=f"^fit: .*{message}"):
        fit(**{**usual, **given})


def test_images_and_labels_of_other_types_train_alike() -> None:
    models = [
        fit(SPEC, PROCESS, images, labels, steps=2, batch_size=4)
        for images, labels in ((IMAGES, LABELS), (IMAGES.double(), LABELS.to(torch.uint8)))
    ]
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_model_of_a_script_is_saved_for_the_commands(tmp_path, monkeypatch, invoke, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    shape = {"image_size": 8, "in_channels": 1, "out_channels": 1, "num_classes": 2, "null_class": True}
    spec = api.UNetSpec(channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), **shape)
    seen: list[api.FitStep] = []

    def see(done: api.FitStep) -> None:
        seen.append(done)
        api.print_progress(done)

    labels = torch.arange(8) % 2
    network = api.build_network(spec)
    model = fit(network, PROCESS, torch.zeros(8, 1, 8, 8), labels, steps=20, batch_size=4, callback=see)
    assert [done.step for done in seen] == list(range(1, 21))
    assert seen[-1].ema is model
    assert len(capsys.readouterr().err.splitlines()) == 10
    api.save_model("m.safetensors", model, PROCESS, classes=["a", "b"])
    command = "sample --model m.safetensors --class b --num 1 --steps 3 --eta 0 --guidance 1 --out x.npz"
    assert invoke(*command.split()).code == 0
    settings = SampleSettings(steps=3, guidance=1.0)
    made = sample(model, PROCESS, 1, (1, 8, 8), settings, torch.tensor([1]), null_label=2)
    wanted = (127.5 * (made[0, 0] + 1)).clamp(0, 255)
    assert api.load_model("m.safetensors").artefact.data.classes == ("a", "b")
    assert (torch.tensor(np.load("x.npz")["arr_0"][0, ..., 0]) - wanted).abs().max() <= 1
    with pytest.raises(UsageError, match="save_model: PointNetwork has no spec"):
        api.save_model("n.safetensors", PointNetwork(), PROCESS)
    assert dir(api) == sorted(api.__all__)


@pytest.mark.slow
@pytest.mark.long
def test_program_in_the_docs_samples_digits_of_their_classes(tmp_path, monkeypatch) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    assert len([line for line in PROGRAM.splitlines() if line.strip()]) <= 15
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(PROGRAM, names)
    digits, made = names["digits"], 8 * (names["made"].flatten(1) + 1)
    found = KNeighborsClassifier(3).fit(digits.data, digits.target).predict(made.numpy())
    assert (found == names["wanted"].numpy()).mean() > 0.8


@pytest.mark.slow
def test_diffctl_has_the_names_of_the_library_and_its_example_runs() -> None:
    assert set(diffctl.__all__) == {*api.__all__, "project"}
    assert all(getattr(diffctl, name) is getattr(api, name) for name in api.__all__)
    names: dict[str, Any] = {}
    code = textwrap.dedent(re.findall(r"^    .*?\n\n(?=\w)", diffctl.__doc__, re.M | re.S)[0])
    exec(code.replace("steps=600", "steps=2"), names)
    assert names["made"].shape == (16, 1, 8, 8)


def test_import_loads_nothing_until_a_name_is_used(tmp_path) -> None:
    code = "import diffctl, sys; print({'torch', 'diffusion'} & sys.modules.keys())"
    done = run_python(tmp_path, "-c", code)
    assert (done.stdout, done.stderr) == ("set()\n", "")
