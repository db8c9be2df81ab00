"""The changes in params.yaml that follow a paper's protocol, and the fields that cannot follow.

Nothing is written here. Fields that decide the training images are left to the user.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from diffusion.process.process_registry import PROCESSES
from diffusion.protocol.card import statistics_source
from diffusion.protocol.paper_mismatches import OPTION_ENTRIES, mismatches
from diffusion.protocol.paper_protocols import PROTOCOLS, PaperField
from diffusion.protocol.sample_sections import idle_axes
from diffusion.system.files import sha256_file
from diffusion.system.references import load_reference
from diffusion.system.yaml_text import REMOVED

REFERENCES = Path("references")  # folder of published statistics
ABSENT = "not set"

Sections = dict[str, dict[str, Any]]


class Change(NamedTuple):
    """A field of params.yaml with its old and new value, REMOVED for none, and the source of the new one."""

    field: str
    old: Any
    new: Any
    source: str

    def __str__(self) -> str:
        return f"{self.field}: {_text(self.old)} → {_text(self.new)} ({self.source})"


class Unchanged(NamedTuple):
    """A field that stays as it is or lacks something, and why."""

    field: str
    why: str

    def __str__(self) -> str:
        return f"{self.field}: {self.why}"


def adopt_protocol(name: str, sections: Mapping[str, Any]) -> tuple[list[Change], list[Unchanged]]:
    """Return the changes by which `sections` (params.yaml) follow a protocol, and what cannot follow."""
    after: Sections = {key: dict(values) for key, values in sections.items() if isinstance(values, Mapping)}
    left, data = [], sections["data"]["name"]
    differing = {one.field for one in mismatches(name, sections)}
    after["evaluate"]["protocol"] = name
    sources = {"evaluate.protocol": PROTOCOLS[name].paper}
    for stated in PROTOCOLS[name].states:
        if stated.field not in differing or (stated.data and data not in stated.data):
            continue
        place, value, why_not = _wanted(stated, after)
        if why_not:
            left.append(Unchanged(stated.field, why_not))
        else:
            after[place[0]][place[1]] = value
            sources[".".join(place)] = stated.source
    for place, value, source in _following(sections, after):
        after[place[0]][place[1]] = value
        sources.setdefault(".".join(place), source)
    return list(_changes(sections, after, sources)), left


def _wanted(stated: PaperField, sections: Sections) -> tuple[tuple[str, str], Any, str]:
    """Return the place of a stated field, and its new value or the reason for no change."""
    section, key = stated.field.split(".")
    in_sweep = section == "sample" and sections["sweep"].get(key)
    place = ("sweep" if in_sweep else section, key)
    now, values = sections[place[0]].get(key), [one for one in stated.values if one is not None]
    if section == "data":
        return place, None, "other images are another training: `diffctl use PROFILE` takes them"
    if stated.field == "evaluate.statistics":
        return place, *_statistics(str(values[0]))
    if key in OPTION_ENTRIES and not set(values) & OPTION_ENTRIES[key].keys():
        names = ", ".join(OPTION_ENTRIES[key])
        return place, None, f"there is no {key} {' or '.join(values)} here: there are {names}"
    if isinstance(now, list | tuple):
        return place, [one for one in now if one in values] or sorted(values), ""
    return place, values[0] if values else None, ""


def _statistics(name: str) -> tuple[dict[str, str] | None, str]:
    """Return the published file, or why it cannot be set."""
    for path in (REFERENCES / name, Path(name)):
        if path.is_file():
            return {"file": str(path), "sha256": sha256_file(path)}, ""
    return (
        None,
        f"{name} is not in {REFERENCES}/: fetch it there from {statistics_source(name)}, and do this again",
    )


def _following(before: Mapping[str, Any], after: Sections) -> Iterator[tuple[tuple[str, str], Any, str]]:
    """Yield further changes that a change requires: place, value and reason."""
    yield from _of_process(before["process"], after)
    sample, sweep = after["sample"], after["sweep"]
    for name in OPTION_ENTRIES:
        listed = sweep.get(name)
        if listed != before["sweep"].get(name) and listed and sample[name] not in listed:
            yield ("sample", name), listed[0], f"sweep.{name} has it"
        options = sample.get(f"{name}_options")
        is_old = options == before["sample"].get(f"{name}_options")
        if sample[name] != before["sample"][name] and options and is_old:
            yield ("sample", f"{name}_options"), {}, f"the options were {before['sample'][name]}'s"
    for where, name, _, why in list(idle_axes(sample, sweep)):
        listed = sweep.get(name) or [None]
        if where == "sweep" and None not in listed and sample[name] not in listed:
            yield ("sample", name), listed[0], f"sweep.{name} had it"
        yield (where, name), None, f"it has no effect {why}"
    yield from _of_extractor(before["evaluate"], after["evaluate"])


def _of_process(before: Mapping[str, Any], after: Sections) -> Iterator[tuple[tuple[str, str], Any, str]]:
    """Yield changes of variance, loss, time distribution and noise, which depend on each other."""
    process, sample, sweep = after["process"], after["sample"], after["sweep"]
    fields = load_reference(PROCESSES[process["schedule"]].config).model_fields
    for key in [key for key in process if key not in fields]:
        yield ("process", key), REMOVED, f"process.schedule {process['schedule']} has none"
    variance = process["variance"] if "variance" in fields else "small"
    learned = variance == "learned"
    reason = (
        f"process.variance is {variance}"
        if "variance" in fields
        else f"process.schedule {process['schedule']} has no learned variance"
    )
    if learned == (process["loss"] == "simple"):
        process["loss"] = "hybrid" if learned else "simple"
        yield ("process", "loss"), process["loss"], reason
    if process["loss"] == "simple" and process["t_sampler"] == "loss-aware":
        yield ("process", "t_sampler"), "uniform", "process.loss is simple"
    for key in ("t_sampler", "weighting"):
        options = f"{key}_options"
        is_old = process.get(options) == before.get(options)
        if process[key] != before[key] and process.get(options) and is_old:
            yield ("process", options), REMOVED, f"the options were {before[key]}'s"
    if not learned and sample["noise"] == "learned":
        yield ("sample", "noise"), variance, reason
    if not learned and "learned" in (sweep.get("noise") or ()):
        rest = [noise for noise in sweep["noise"] if noise != "learned"]
        yield ("sweep", "noise"), rest or [variance], reason


def _of_extractor(
    before: Mapping[str, Any], after: dict[str, Any]
) -> Iterator[tuple[tuple[str, str], Any, str]]:
    """Yield changes of weights, statistics and further spaces after a change of the extractor."""
    name = after["extractor"]
    if name == before["extractor"]:
        return
    reason = f"it was of {before['extractor']}"
    for key in ("weights", "weights_sha256", "statistics"):
        if after.get(key) and after[key] == before.get(key):
            yield ("evaluate", key), None, reason
    rest = [one for one in after.get("extra_extractors") or () if one["extractor"] != name]
    if len(rest) < len(after.get("extra_extractors") or ()):
        yield ("evaluate", "extra_extractors"), rest, f"{name} is evaluate.extractor"


def _changes(before: Mapping[str, Any], after: Sections, sources: Mapping[str, str]) -> Iterator[Change]:
    for field, source in sources.items():
        section, key = field.split(".")
        old, new = before[section].get(key), after[section][key]
        old = list(old) if isinstance(old, tuple) else old
        if old != new:
            yield Change(field, old, new, source)


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, Mapping):
        return PurePath(value["file"]).name if "file" in value else str(dict(value))
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:,}" if type(value) is int else str(value)
