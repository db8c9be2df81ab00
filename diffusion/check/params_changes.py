"""The changes in params.yaml that follow a paper's protocol, or that make a pretrained model fit.

Nothing is written here. Fields that decide the training images are left to the user.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic_core import to_jsonable_python

from diffusion.config import Config
from diffusion.images.image_size import Size
from diffusion.model.model_file import ModelDescription
from diffusion.model.network_registry import MODELS, ModelConfig, NetworkSpec
from diffusion.process.process_registry import PROCESSES
from diffusion.protocol.card import statistics_source
from diffusion.protocol.paper_mismatches import format_setting, mismatches
from diffusion.protocol.paper_protocols import PROTOCOLS, PaperField
from diffusion.protocol.sample_sections import idle_axes
from diffusion.protocol.sampling_options import REGISTRIES_WITH_OPTIONS
from diffusion.system.files import sha256_file
from diffusion.system.params import REMOVED
from diffusion.system.registry import load_reference
from diffusion.train.pretrained import needed_process

REFERENCES = Path("references")  # folder of published statistics
FREE = ModelConfig.model_fields.keys() - {"name"}  # fields of a model that may differ
ATTENTION = "attention_resolutions"  # sides of feature maps, which scale with the image size

Sections = dict[str, dict[str, Any]]


class Change(NamedTuple):
    """A field of params.yaml with its old and new value, REMOVED for none, and the source of the new one."""

    field: str
    old: Any
    new: Any
    source: str

    def __str__(self) -> str:
        return f"{self.field}: {format_setting(self.old)} → {format_setting(self.new)} ({self.source})"


class _Draft:
    """Sections of params.yaml while they are changed, and the source of each change by its field."""

    def __init__(self, before: Mapping[str, Any]) -> None:
        self.before = before
        self.after: Sections = {key: dict(one) for key, one in before.items() if isinstance(one, Mapping)}
        self.sources: dict[tuple[str, str], str] = {}

    def set(self, section: str, key: str, value: Any, source: str) -> None:
        self.after[section][key] = value
        self.sources.setdefault((section, key), source)

    def is_changed(self, section: str, key: str) -> bool:
        return bool(self.after[section].get(key) != self.before[section].get(key))

    def is_left(self, section: str, key: str) -> bool:
        """Return whether a field that is set has its old value."""
        return bool(self.after[section].get(key)) and not self.is_changed(section, key)

    def changes(self) -> list[Change]:
        return [
            Change(f"{section}.{key}", self.before[section].get(key), self.after[section][key], source)
            for (section, key), source in self.sources.items()
            if self.is_changed(section, key)
        ]


def adopt_protocol(name: str, sections: Mapping[str, Any]) -> tuple[list[Change], dict[str, str]]:
    """Return the changes by which `sections` (params.yaml) follow a protocol, and why other fields cannot."""
    draft, left, data = _Draft(sections), dict[str, str](), sections["data"]["name"]
    differing = {one.field for one in mismatches(name, sections)}
    draft.set("evaluate", "protocol", name, PROTOCOLS[name].paper)
    for stated in PROTOCOLS[name].states:
        is_for_data = not stated.data or data in stated.data
        if stated.field in differing and is_for_data and (why := _follow(stated, draft)):
            left[stated.field] = why
    _change_process(draft)
    _change_sampling(draft)
    _change_extractor(draft)
    return draft.changes(), left


def _follow(stated: PaperField, draft: _Draft) -> str:
    """Set a field as the paper states it; return why it cannot be set, else an empty text."""
    section, key = stated.field.split(".")
    if section == "data":
        return "other images are another training: `diffctl use PROFILE` takes them"
    if section == "model":
        return "another network is another training: `diffctl set` changes it"
    if section == "sample" and draft.after["sweep"].get(key):
        section = "sweep"
    now, values = draft.after[section].get(key), [one for one in stated.values if one is not None]
    value: Any = values[0] if values else None
    if stated.field == "evaluate.statistics":
        file = next((path for path in (REFERENCES / value, Path(value)) if path.is_file()), None)
        if file is None:
            source = statistics_source(value)
            return f"{value} is not in {REFERENCES}/: fetch it there from {source}, and do this again"
        value = {"file": str(file), "sha256": sha256_file(file)}
    elif isinstance(now, list):
        value = [one for one in now if one in values] or sorted(values)
    draft.set(section, key, value, stated.source)
    return ""


def _change_process(draft: _Draft) -> None:
    """Change variance, loss, time distribution and noise, which depend on each other."""
    process, sample, sweep = (draft.after[name] for name in ("process", "sample", "sweep"))
    schedule = process["schedule"]
    fields = load_reference(PROCESSES[schedule].config).model_fields
    for key in [key for key in process if key not in fields]:
        draft.set("process", key, REMOVED, f"process.schedule {schedule} has none")
    variance, reason = "small", f"process.schedule {schedule} has no learned variance"
    if "variance" in fields:
        variance = process["variance"]
        reason = f"process.variance is {variance}"
    learned = variance == "learned"
    if learned == (process["loss"] == "simple"):
        draft.set("process", "loss", "hybrid" if learned else "simple", reason)
    if process["loss"] == "simple" and process["t_sampler"] == "loss-aware":
        draft.set("process", "t_sampler", "uniform", "process.loss is simple")
    for key in ("t_sampler", "weighting"):
        if draft.is_changed("process", key) and draft.is_left("process", f"{key}_options"):
            old = draft.before["process"][key]
            draft.set("process", f"{key}_options", REMOVED, f"the options were {old}'s")
    if not learned and sample["noise"] == "learned":
        draft.set("sample", "noise", variance, reason)
    if not learned and "learned" in (sweep.get("noise") or ()):
        rest = [noise for noise in sweep["noise"] if noise != "learned"]
        draft.set("sweep", "noise", rest or [variance], reason)


def _change_sampling(draft: _Draft) -> None:
    """Change the options of another sampler or spacing, and axes that have no effect any more."""
    sample, sweep = draft.after["sample"], draft.after["sweep"]
    for name in REGISTRIES_WITH_OPTIONS:
        listed = sweep.get(name)
        if draft.is_changed("sweep", name) and listed and sample[name] not in listed:
            draft.set("sample", name, listed[0], f"sweep.{name} has it")
        if draft.is_changed("sample", name) and draft.is_left("sample", f"{name}_options"):
            draft.set("sample", f"{name}_options", {}, f"the options were {draft.before['sample'][name]}'s")
    for where, name, _, why in list(idle_axes(sample, sweep)):
        listed = sweep.get(name) or [None]
        if where == "sweep" and None not in listed and sample[name] not in listed:
            draft.set("sample", name, listed[0], f"sweep.{name} had it")
        draft.set(where, name, None, f"it has no effect {why}")


def _change_extractor(draft: _Draft) -> None:
    """Change weights, statistics and further spaces after a change of the extractor."""
    after, before = draft.after["evaluate"], draft.before["evaluate"]
    if not draft.is_changed("evaluate", "extractor"):
        return
    for key in ("weights", "weights_sha256", "statistics"):
        if draft.is_left("evaluate", key):
            draft.set("evaluate", key, None, f"it was of {before['extractor']}")
    further, name = after.get("extra_extractors") or [], after["extractor"]
    rest = [one for one in further if one["extractor"] != name]
    if len(rest) < len(further):
        draft.set("evaluate", "extra_extractors", rest, f"{name} is evaluate.extractor")


def sections_of(start: ModelDescription) -> Sections:
    """Return the sections `model` and `process` of a model, without defaults."""
    network = start.network
    usual = {name for name, field in _fields(network).items() if getattr(network, name) == field.default}
    shape = {name: value for name, value in _shape(network).items() if name not in usual}
    noise: dict[str, Any] = {"schedule": start.process.schedule}
    if getattr(start.process, "zero_terminal_snr", False):
        noise["zero_terminal_snr"] = True
    return {"model": shape, "process": noise | needed_process(start.process, start.process)}


def needed_changes(config: Config, start: ModelDescription, size: Size) -> Sections:
    """Return the fields, channels excepted, that must change for a model and images of this size."""
    shape = _shape(start.network)
    if ATTENTION in shape:
        shape[ATTENTION] = [side * min(size) // min(start.network.size) for side in shape[ATTENTION]]
    wanted = {"model": shape, "process": needed_process(config.process, start.process)}
    has = {"model": config.model, "process": config.process}
    differing = {
        section: {name: value for name, value in fields.items() if _differs(has[section], name, value)}
        for section, fields in wanted.items()
    }
    return {section: fields for section, fields in differing.items() if fields}


def format_sections(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Format sections as YAML with one field per line."""
    lines = []
    for section, fields in sections.items():
        lines.append(f"{section}:")
        for name, value in fields.items():
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6).splitlines()[0]
            lines.append(f"  {name}: {text}")
    return "\n".join(lines)


def _fields(spec: NetworkSpec) -> dict[str, Any]:
    """Return the fields of its section `model` that decide whether weights fit."""
    kind: type[ModelConfig] = load_reference(MODELS[spec.name].config)
    return {name: field for name, field in kind.model_fields.items() if name not in FREE}


def _shape(spec: NetworkSpec) -> dict[str, Any]:
    return {name: to_jsonable_python(getattr(spec, name)) for name in _fields(spec)}


def _differs(section: object, name: str, value: Any) -> bool:
    has = to_jsonable_python(getattr(section, name, None))
    return sorted(has or ()) != sorted(value) if name == ATTENTION else bool(has != value)
