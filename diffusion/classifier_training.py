"""Training the classifier of noised images, by draws as the model's own training has, under another name."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import ValidationError

from diffusion.checkpoint import DataCard
from diffusion.classifier import Classifier, ClassifierArtefact
from diffusion.code import Code, CodeSince, code_of, code_since
from diffusion.data.loader import Batches
from diffusion.data.store import ImageStore
from diffusion.devices import default_device
from diffusion.draws import Batch, draw_batch
from diffusion.errors import DiffctlError, UsageError
from diffusion.forward_process import Process
from diffusion.masks import masks_of
from diffusion.process_config import ProcessConfig
from diffusion.process_registry import PROCESSES, build_process
from diffusion.random import generator
from diffusion.resolve import TrainPlan, result_values
from diffusion.resumable import Moments, Part, Resumable, is_finite
from diffusion.section import explain
from diffusion.shape import UNetSpec
from diffusion.timesteps import UniformSampler
from diffusion.train_config import ClassifierConfig
from diffusion.train_precision import resolve_precision
from diffusion.training import MAX_BAD_STEPS, learning_rate

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after every step with (done, total, the step's means)."""


class ClassifierPlan(TrainPlan):
    """A classifier that is still to be trained."""

    kind: Literal["classifier"]
    network: UNetSpec


def classifier_code(process: ProcessConfig) -> Code:
    """The modules that the numbers of a classifier's training in this process come from."""
    return code_of(__name__, PROCESSES[process.schedule].module)


def resolve_classifier(
    config: ClassifierConfig, process: ProcessConfig, data: DataCard, size: int, channels: int
) -> ClassifierPlan:
    """What training a classifier of this data, noised by this process, will give.

    UsageError where they do not fit. Its precision is that of the machine it is trained on.
    """
    if len(data.classes) < 2:
        raise UsageError(f"a classifier needs at least two classes, and {data.name} has {len(data.classes)}")
    try:
        network = UNetSpec(
            **{**config.model.model_dump(), "class_cond": True},
            image_size=size,
            in_channels=channels,
            out_channels=len(data.classes),
            num_classes=len(data.classes),
        )
    except ValidationError as error:
        raise UsageError(explain(error, "params.yaml with this data: classifier.model", UNetSpec)) from None
    return ClassifierPlan(
        kind="classifier",
        network=network,
        process=process,
        train=config.train,
        data=data,
        step=config.train.steps,
        precision=resolve_precision(config.train.precision, default_device()),
        code=(code_since(0, classifier_code(process)),),
    )


def classifier_result(plan: ClassifierPlan, code: Sequence[CodeSince]) -> ClassifierArtefact:
    """What the classifier's file says of itself; `code` made its steps."""
    return ClassifierArtefact.model_validate(result_values(plan, code))


@dataclass
class ClassifierState(Resumable):
    """A classifier's training after `step` steps."""

    artefact: ClassifierPlan
    network: Classifier
    optimizer: torch.optim.AdamW

    def parts(self) -> dict[str, Part]:
        """Weights and optimiser moments."""
        return {"network": self.network, "optimizer": Moments(self.optimizer)}


def new_classifier(artefact: ClassifierPlan, device: torch.device) -> ClassifierState:
    """Step 0: weights drawn from the training's seed."""
    train = artefact.train
    with torch.random.fork_rng(devices=[]):  # the initialisers know the global generator only
        torch.manual_seed(generator("classifier weights", train.seed).initial_seed())
        network = Classifier(artefact.network).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=train.lr, weight_decay=train.weight_decay)
    return ClassifierState(artefact, network, optimizer, code=list(artefact.code))


def train_classifier(
    state: ClassifierState,
    store: ImageStore,
    device: torch.device,
    save: Callable[[ClassifierState], None],
    check_stop: Callable[[], None],
    progress: Progress,
) -> None:
    """Train to the artefact's last step, in place, saving every `save_every` steps and at the end.

    `check_stop` runs between steps and raises to stop; the state is saved first. DiffctlError after five
    non-finite steps in a row.
    """
    config, process = state.artefact.train, build_process(state.artefact.process)
    data, timesteps = Batches(store, device), UniformSampler(process.timesteps)
    masks = masks_of(state.network, state.artefact, "classifier dropout", False)
    while state.step < config.steps:
        try:
            check_stop()
        except DiffctlError:
            save(state)
            raise
        batch = draw_batch(state.artefact, timesteps, data, state.step, purpose="classifier")
        if masks:
            masks.draw(state.step, device)
            masks.take(slice(config.batch_size))
        means = classifier_step(state, process, batch)
        state.count(means)
        if state.step % config.log_every == 0 or state.step == config.steps:
            state.history.append({"step": state.step, **state.take_means()})
        progress(state.step, config.steps, means)
        if state.bad_in_a_row >= MAX_BAD_STEPS:
            raise DiffctlError(
                f"the classifier's training stopped after {MAX_BAD_STEPS} non-finite steps in a row, at step "
                f"{state.step}: lower classifier.train.lr, or set classifier.train.precision: fp32"
            )
        if state.step % config.save_every == 0 or state.step == config.steps:
            save(state)


def classifier_step(state: ClassifierState, process: Process, batch: Batch) -> dict[str, float]:
    """One optimiser step in place on images noised to uniform t (ADM sec. 4.1).

    Returns its cross-entropy, accuracy and gradient norm. A non-finite one changes no weight.
    """
    train, labels = state.artefact.train, batch.labels
    assert labels is not None, "resolve_classifier() refuses data without classes"
    x_t = process.q_sample(batch.x_0, batch.index, batch.noise)
    bf16 = state.artefact.precision == "bf16"
    with torch.autocast(x_t.device.type, dtype=torch.bfloat16, enabled=bf16):
        logits = state.network(x_t, batch.index).float()
    loss = F.cross_entropy(logits, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), train.grad_clip or math.inf)
    accuracy = (logits.argmax(1) == labels).float().mean()
    means = {"loss": float(loss.detach()), "accuracy": float(accuracy), "grad_norm": float(norm)}
    if is_finite(means):
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(state.artefact, state.step)
        state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return means
