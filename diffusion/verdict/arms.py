"""The arms of a verdict: the control and its changes, and what may differ between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from diffusion.choice.confidence import noise_differences
from diffusion.config import Config, parse
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import PARAMS, PREPARED
from diffusion.process.process_registry import WITH_OPTIONS
from diffusion.protocol.card import differing_fields
from diffusion.protocol.grid import Cell, cell_settings, grid, settings_card
from diffusion.protocol.guidance_rules import ema_guide
from diffusion.protocol.learned_grid import refuse_learned_times
from diffusion.protocol.settings import CommonSettings
from diffusion.system.devices import default_device
from diffusion.system.errors import UsageError
from diffusion.system.params import changed_fields, flatten_fields, with_fields
from diffusion.train.optimizers.optimizer_registry import OPTIMIZERS
from diffusion.train.plan import DenoiserPlan, changed_loss, plan_training, training_fingerprint

APART = 500_000  # between the seeds of arms that differ in their seeds alone
PROTOCOL = ("data", "evaluate")  # sections that decide what scores are computed on
IMAGES = ("num_images", "seed")  # of the section `sample`: which images are scored
# (section, field, registry) of the fields NAME_options.
OPTIONS = (*(("process", *one) for one in WITH_OPTIONS.items()), ("train", "optimizer", OPTIMIZERS))

Subject = Literal["training", "sampling"]
Metric = Literal["fd", "kd", "loss"]


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: its name, and its values of params.yaml.

    `seeds` is added to the seeds of its trainings.
    """

    name: str
    values: dict[str, Any]
    seeds: int = 0

    @cached_property
    def config(self) -> Config:
        """The validated values; UsageError names the arm."""
        return parse(self.values, f"{PARAMS} with {self.name}" if "=" in self.name else self.name)

    @cached_property
    def plan(self) -> DenoiserPlan:
        """The plan of its training on the prepared data."""
        meta = open_store(PREPARED / "train", PreparedMeta).meta
        return plan_training(self.config, meta, default_device())

    @property
    def enlarges_real(self) -> bool:
        """Whether its images are real ones that it enlarges."""
        return self.config.model.low_res is not None and self.config.sample.base is None

    def cell(self, name: str | None) -> Cell:
        """Return the cell of its sweep that is scored: by default the first one with the most steps."""
        cells = {cell.name: cell for cell in grid(self.config.sample, self.config.sweep)}
        if name is None:
            return max(cells.values(), key=lambda cell: cell.steps)
        if name not in cells:
            raise UsageError(f"--cell {name}: the sweep of {self.name} has {', '.join(cells)}")
        return cells[name]

    def card(self, name: str | None) -> dict[str, Any]:
        """Return the card of the cell that is scored, with its EMA profile."""
        cell = self.cell(name)
        return {**settings_card(cell_settings(self.config.sample, cell)), "ema": cell.ema}

    def differences(self, control: "Arm") -> list[str]:
        """Return the fields that differ from the control's, as text; pairs have seeds of their own."""
        configs = control.config, self.config
        dumped = {name for one in configs for name in flatten_fields(one.model_dump(mode="json"))}
        dumped = {name for name in dumped if name != "train.seed" and not name.startswith("search.")}
        fields = [_all_fields(one) for one in configs]
        return changed_fields(*({name: one[name] for name in dumped & one.keys()} for one in fields))

    def fingerprint(self, seed: int) -> str:
        """Return the identity of its training with a seed, to which its own offset is added."""
        train = self.plan.train.model_copy(update={"seed": seed + self.seeds})
        return training_fingerprint(self.plan.model_copy(update={"train": train}))

    def pair_values(self, seeds: tuple[int, int], cell: Cell, images: int) -> dict[str, Any]:
        """Return the params.yaml of a training: the seeds of training and samples, and the scored cell."""
        point = {
            "train.seed": seeds[0] + self.seeds,
            "sample.seed": seeds[1],
            "sample.num_images": images,
            "sweep": {axis: [value] for axis, value in cell.axes.items()},
        }
        return with_fields({name: one for name, one in self.values.items() if name != "search"}, point)


OF_CASCADE = ("base", "cond_noise")  # fields of a card that belong to a model that enlarges images


def find_subject(control: Arm, change: Arm, cell: str | None) -> Subject:
    """Return what the change is of; UsageError if the two arms cannot be judged by one protocol."""
    if wrong := [text for text in change.differences(control) if _is_protocol(text.split()[0])]:
        raise UsageError(f"{change.name} changes what is scored ({wrong[0]}): leave that equal in both arms")
    if control.enlarges_real != change.enlarges_real:
        arm, other = (control, change) if control.enlarges_real else (change, control)
        found = f"{arm.name} enlarges real images, and {other.name} does not"
        raise UsageError(f"{found}: give it a base (sample.base), or compare two that do")
    cards = [arm.card(cell) for arm in (control, change)]
    trains = control.fingerprint(0) != change.fingerprint(0)
    if not differing_fields(cards, OF_CASCADE if trains else ()):
        if not trains:
            raise UsageError(f"{change.name}: the same training and sampling: nothing to judge")
        return "training"
    fields = ", ".join(differing_fields(cards))
    if trains:
        both = f"{change.name} changes the training and the sampling ({fields})"
        raise UsageError(f"{both}: judge one of them at a time, with the other one equal in both arms")
    if wrong := list(noise_differences(cards)):
        found = f"{change.name} changes which images are made ({', '.join(wrong)})"
        raise UsageError(f"{found}: they could not be paired, so leave that equal in both arms")
    return "sampling"


def refuse_other_losses(control: Arm, changes: Sequence[Arm], *, equal_steps: bool) -> None:
    """Raise UsageError if validation losses of the arms cannot be compared, or are not computed.

    `equal_steps` is whether all arms keep the steps that they have.
    """
    steps = {arm.config.train.steps for arm in (control, *changes)}
    if control.plan.process.loss_options.get("stage_steps") and (len(steps) > 1 or not equal_steps):
        raise UsageError("--metric loss: the loss has stages, and the arms end at other steps: use fd or kd")
    for arm in (control, *changes):
        if arm.config.train.val_every is None:
            raise UsageError(f"--metric loss: train.val_every of {arm.name} is null: give a number or auto")
        if field := changed_loss(control.plan, arm.plan):
            found = f"--metric loss: {arm.name} changes the loss itself ({field})"
            raise UsageError(f"{found}: leave that equal in both arms, or use --metric fd or kd")


def common_subject(control: Arm, changes: Sequence[Arm], cell: str | None) -> Subject:
    """Return what all changes are of; UsageError if some are of the training and some of the sampling."""
    subjects = [find_subject(control, change, cell) for change in changes]
    if len(set(subjects)) > 1:
        first = changes[subjects.index("sampling")].name
        raise UsageError(
            f"{first} changes the sampling and another change the training: judge them separately"
        )
    return subjects[0]


def refuse_files_of_the_training(sample: CommonSettings, cell: Cell, work: str) -> None:
    """Raise UsageError if the cell needs EMA profiles or learned times: they are of the project's model.

    `work` is what trains models of its own, such as "a verdict".
    """
    settings = cell_settings(sample, cell)
    guide = settings.guide
    refuse_learned_times(settings.spacing_options, work)
    if cell.ema is not None or (guide is not None and ema_guide(guide) is not None):
        found = f"cell {cell.name} is sampled from EMA profiles, which the trainings of {work} do not keep"
        raise UsageError(f"{found}: use another cell, or leave sweep.ema and the guide out")


def _all_fields(config: Config) -> dict[str, Any]:
    """Return the values by dotted name, also the defaults that a dump leaves out."""
    dump = config.model_dump(mode="json")
    sections = {name: {**dict(getattr(config, name)), **values} for name, values in dump.items() if values}
    for section, field, registry in OPTIONS:
        values, options = sections[section], f"{field}_options"
        values[options] = registry[values[field]].checked_options(values[options])
    return flatten_fields(sections)


def _is_protocol(field: str) -> bool:
    section, _, name = field.partition(".")
    return (section in PROTOCOL and field != "data.flip") or (section == "sample" and name in IMAGES)
