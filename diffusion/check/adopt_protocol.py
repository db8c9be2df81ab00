"""A paper's protocol as params.yaml is to have it: each field that departs, what follows, what stays and why.

Nothing is written here. What decides which images are trained on is left to a person: other data are another
training, with another network.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.paper_protocols import PROTOCOLS, PaperField, mismatches
from diffusion.protocol.published_statistics import statistics_source
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.sweep_config import idle_axes
from diffusion.system.files import sha256_file

REFERENCES = Path("references")  # where a published file of statistics is looked for
ABSENT = "not set"

Sections = dict[str, dict[str, Any]]


class Change(NamedTuple):
    """A field of params.yaml that gets another value, and who says so."""

    field: str
    old: Any
    new: Any
    source: str

    def __str__(self) -> str:
        return f"{self.field}: {_text(self.old)} → {_text(self.new)} ({self.source})"


class Unchanged(NamedTuple):
    """A field that stays as it is, or lacks something, and why."""

    field: str
    why: str

    def __str__(self) -> str:
        return f"{self.field}: {self.why}"


class Adoption(NamedTuple):
    """What is to be written, in order, and what cannot be."""

    changes: list[Change]
    left: list[Unchanged]


def adopt_protocol(name: str, sections: Mapping[str, Any]) -> Adoption:
    """What makes `sections`, those of params.yaml as plain values, follow the protocol of that name.

    Files of statistics are looked for in the folder `references` and beside params.yaml.
    """
    after: Sections = {key: dict(values) for key, values in sections.items() if isinstance(values, Mapping)}
    left = []
    after["evaluate"]["protocol"] = name
    sources = {"evaluate.protocol": PROTOCOLS[name].paper}
    for stated in _departing(name, sections):
        place, value, why_not = _wanted(stated, after)
        if why_not:
            left.append(Unchanged(stated.field, why_not))
        else:
            after[place[0]][place[1]] = value
            sources[".".join(place)] = stated.source
    for place, value, source in _following(sections, after):
        after[place[0]][place[1]] = value
        sources.setdefault(".".join(place), source)
    return Adoption(list(_changes(sections, after, sources)), [*left, *_lacking(after)])


def _departing(name: str, sections: Mapping[str, Any]) -> Iterator[PaperField]:
    data = sections["data"]["name"]
    fields = {one.field for one in mismatches(name, sections)}
    for stated in PROTOCOLS[name].states:
        if stated.field in fields and (not stated.data or data in stated.data):
            yield stated


def _wanted(stated: PaperField, sections: Sections) -> tuple[tuple[str, str], Any, str]:
    """Where a stated field stands, its new value, and instead of one why it stays."""
    section, key = stated.field.split(".")
    in_sweep = section == "sample" and sections["sweep"].get(key)
    place = ("sweep" if in_sweep else section, key)
    now, values = sections[place[0]].get(key), [one for one in stated.values if one is not None]
    if section == "data":
        return place, None, "other images are another training: `diffctl use PROFILE` takes them"
    if stated.field == "evaluate.statistics":
        return place, *_statistics(str(values[0]))
    if key == "sampler" and not set(values) & SAMPLERS.keys():
        return place, None, f"there is no {' or '.join(values)} here: the samplers are {', '.join(SAMPLERS)}"
    if isinstance(now, list | tuple):
        return place, [one for one in now if one in values] or sorted(values), ""
    return place, values[0], ""


def _statistics(name: str) -> tuple[dict[str, str] | None, str]:
    """The published file by its name, where it is here, else why it cannot be set."""
    for path in (REFERENCES / name, Path(name)):
        if path.is_file():
            return {"file": str(path), "sha256": sha256_file(path)}, ""
    return (
        None,
        f"{name} is not in {REFERENCES}/: fetch it there from {statistics_source(name)}, and do this again",
    )


def _following(before: Mapping[str, Any], after: Sections) -> Iterator[tuple[tuple[str, str], Any, str]]:
    """What a changed field makes impossible beside it: its place, the value that is possible, and why."""
    yield from _of_process(after)
    sample, sweep = after["sample"], after["sweep"]
    if sample["sampler"] != before["sample"]["sampler"] and sample.get("sampler_options"):
        yield ("sample", "sampler_options"), {}, f"the options were {before['sample']['sampler']}'s"
    for where, name, _, why in list(idle_axes(sample, sweep)):
        listed = sweep.get(name) or [None]
        if where == "sweep" and None not in listed and sample[name] not in listed:
            yield ("sample", name), listed[0], f"sweep.{name} had it"
        yield (where, name), None, f"it has no effect {why}"
    yield from _of_extractor(before["evaluate"], after["evaluate"])


def _of_process(after: Sections) -> Iterator[tuple[tuple[str, str], Any, str]]:
    """Variance, loss, the sampling of timesteps and the noise go together."""
    process, sample, sweep = after["process"], after["sample"], after["sweep"]
    learned = process["variance"] == "learned"
    said = f"process.variance is {process['variance']}"
    if learned == (process["loss"] == "simple"):
        process["loss"] = "hybrid" if learned else "simple"
        yield ("process", "loss"), process["loss"], said
    if process["loss"] == "simple" and process["t_sampler"] == "loss-aware":
        yield ("process", "t_sampler"), "uniform", "process.loss is simple"
    if not learned and sample["noise"] == "learned":
        yield ("sample", "noise"), process["variance"], said
    if not learned and "learned" in (sweep.get("noise") or ()):
        rest = [noise for noise in sweep["noise"] if noise != "learned"]
        yield ("sweep", "noise"), rest or [process["variance"]], said


def _of_extractor(
    before: Mapping[str, Any], after: dict[str, Any]
) -> Iterator[tuple[tuple[str, str], Any, str]]:
    """Weights and statistics are one extractor's; a further space may not be the first one again."""
    name = after["extractor"]
    if name == before["extractor"]:
        return
    said = f"it was of {before['extractor']}"
    for key in ("weights", "weights_sha256", "statistics"):
        if after.get(key) and after[key] == before.get(key):
            yield ("evaluate", key), None, said
    also = [one for one in after.get("also") or () if one["extractor"] != name]
    if len(also) < len(after.get("also") or ()):
        yield ("evaluate", "also"), also, f"{name} is evaluate.extractor"


def _changes(before: Mapping[str, Any], after: Sections, sources: Mapping[str, str]) -> Iterator[Change]:
    for field, source in sources.items():
        section, key = field.split(".")
        old, new = before[section].get(key), after[section][key]
        old = list(old) if isinstance(old, tuple) else old
        if old != new:
            yield Change(field, old, new, source)


def _lacking(after: Sections) -> Iterator[Unchanged]:
    """Weights that have to be downloaded, of the first extractor."""
    evaluate = after["evaluate"]
    weights = EXTRACTORS[evaluate["extractor"]].weights
    if evaluate.get("weights") or weights.comes_along or not weights.file:
        return
    from diffusion.evaluate.features.extractor_weights import cached_path  # with torch

    if not cached_path(weights).is_file():
        why = f"{weights.file}, its weights, is not here: `diffctl run` downloads it, or put it at"
        yield Unchanged("evaluate.extractor", f"{why} {cached_path(weights)}")


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, Mapping):
        return PurePath(value["file"]).name if "file" in value else str(dict(value))
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:,}" if type(value) is int else str(value)
