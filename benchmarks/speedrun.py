"""The Fashion-MNIST speedrun: `python -m benchmarks.speedrun [--config NAME] [--seed N] [--seconds 240]`.

The best Fréchet distance after 240 s of training on two CPU cores. docs/speedrun.md has the rules.

Without --config every entry runs with its seeds. A result that exists is not computed again. Other --seconds
or --images are tries: their results are in `runs/speedrun/`. So are those of `--steps`, which compares
entries of this library with equal steps. `--render` only updates docs/speedrun.md.

`--contest objectives` runs the entries of docs/objectives.md, whose trainings count steps instead of time.
Several processes can share them by --config.
"""

import argparse
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from benchmarks import ROOT, diffusers_entry, made_by, quality
from benchmarks.diffusers_recipes import RECIPES
from benchmarks.quality import STEPS, Judge, Size, Trained
from diffusion.config import Config, parse
from diffusion.images.store import Images, ImageStore
from diffusion.model.model_file import LoadedModel
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampling_steps import count_nfe
from diffusion.show.network_table import model
from diffusion.system.devices import default_device
from diffusion.system.files import write_json, write_text
from diffusion.train.plan import TrainPlan, plan_training
from docs.site.leaderboard_page import mean_distances, with_leaderboard

CHOICE_SEED = 1000  # added to the seed of the samples by which options and entries are chosen
CORES = 2


class Contest(NamedTuple):
    """Entries in `benchmarks/{name}.yaml`, with their results in `docs/{name}/` and on `docs/{name}.md`.

    A training takes `size.seconds`; None stands for the entries' `train.steps`.
    """

    name: str
    size: Size

    @property
    def results(self) -> Path:
        """Return the folder of the results."""
        return ROOT / "docs" / self.name

    @property
    def page(self) -> Path:
        """Return the page with the leaderboard."""
        return ROOT / f"docs/{self.name}.md"

    def read(self) -> dict[str, "Entry"]:
        """Read the entries."""
        return read_entries(ROOT / f"benchmarks/{self.name}.yaml", self.results)


CONTESTS = (Contest("speedrun", Size()), Contest("objectives", Size(seconds=None, images=1000)))


class Entry(NamedTuple):
    """An entry of a contest, with the options of the entry that it builds on, `after`.

    `sample` are options of sampling, `tried` lists changes of them to choose from. `guide` is the average
    {sigma_rel} at the {share} of the time by which autoguidance guides. `seconds` of training are for the
    second track, the shortest time to a distance; None for the contest's.
    """

    name: str
    after: str | None
    what: str
    params: dict[str, Any]
    sample: dict[str, Any]
    tried: list[dict[str, Any]]
    guide: dict[str, float]
    seeds: tuple[int, ...]
    seconds: float | None = None

    def config(self, seed: int) -> Config:
        """Return the params of a training with this seed."""
        rest = {"sample": {"num_images": 2}, "sweep": {"steps": [1], "eta": [0.0]}, "evaluate": {}}
        return parse(merge({**self.params, **rest}, {"train": {"seed": seed}}), self.name)


class Finished(NamedTuple):
    """A training at its end, from which images are made."""

    entry: Entry
    plan: TrainPlan
    trained: Trained

    def settings(self, change: dict[str, Any]) -> SampleSettings:
        """Return the entry's options of sampling with a change."""
        options = {"steps": STEPS, "seed": self.plan.train.seed, **self.entry.sample, **change}
        if self.entry.guide and options.get("guidance"):
            options["guide"] = f"ema:{self.entry.guide['sigma_rel']:g}@{self.trained.snapshot_step}"
        return SampleSettings(**options)

    def images(self, average: str, settings: SampleSettings, count: int) -> Images:
        """Return so many images of an average of the weights."""
        guide = None
        if settings.guidance and self.entry.guide:
            snapshot = self.trained.snapshots[f"σ_rel {self.entry.guide['sigma_rel']:g}"]
            guide = LoadedModel(snapshot, self.plan)
        loaded = LoadedModel(self.trained.averages[average], self.plan)
        return quality.images_of(loaded, settings, count, default_device(), guide)


class Judges(NamedTuple):
    """The distances to three disjoint parts of the test split, and to all of it.

    By a quarter the options are chosen, by another one the entry to build on. Half of it is for the report.
    """

    choice: Judge
    build: Judge
    report: Judge
    full: Judge

    @classmethod
    def of(cls, full: Judge) -> "Judges":
        """Return the parts of a split."""
        parts = slice(0, None, 4), slice(2, None, 4), slice(1, None, 2)
        return cls(*map(full.part, parts), full)

    def report_on(self, images: Images, file: Path) -> dict[str, float]:
        """Return the distances to the reported half and to the whole split; keep the images in a file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, images)
        features = self.full.features(images)
        distances = {"fd": self.report.distance(features), "fd_full": self.full.distance(features)}
        return {name: round(distance, 1) for name, distance in distances.items()}


def read_entries(path: Path, folder: Path) -> dict[str, Entry]:
    """Read the entries; each has the options of its `after` and its own.

    `after: best` is the entry with the lowest distance in the folder's results, of those before it in the
    file and of 50 NFE; the last one as long as there are no results.
    """
    entries: dict[str, Entry] = {}
    found = {name: fd for name, fd in mean_distances(read_results(folder)).items() if name not in RECIPES}
    for name, given in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        after = given.get("after")
        if after == "best":
            after = min(entries.keys() & found, key=found.__getitem__, default=list(entries)[-1])
        before = entries[after] if after else Entry("", None, "", {}, {}, [], {}, ())
        entries[name] = Entry(
            name,
            after,
            given["what"],
            merge(before.params, given.get("params", {})),
            before.sample | given.get("sample", {}),
            given.get("tried", before.tried),
            given.get("guide", before.guide),
            tuple(given.get("seeds", (0,))),
            given.get("seconds"),
        )
    return entries


def read_results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the changes, section by section; None removes a key."""
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return {key: value for key, value in merged.items() if value is not None}


def run(
    entry: Entry, seed: int, size: Size, train: ImageStore, judges: Judges, folder: Path
) -> dict[str, Any]:
    """Train, choose, sample and score; return the result."""
    device = default_device()
    plan = plan_training(entry.config(seed), train.meta, device)
    if entry.name in RECIPES:
        kept = kept_images(entry.name, seed)
        started = diffusers_entry.Run(plan, train, size, device)
        return diffusers_entry.run(entry.name, started, judges, folder, kept)
    share = entry.guide.get("share", 1.0)
    trained = quality.train_for(size.seconds, plan, train, device, share)
    finished, table = Finished(entry, plan, trained), model(plan.network)
    average, settings, tried = choose(finished, size.images // 4, judges.choice)
    build = settings.model_copy(update={"seed": CHOICE_SEED + settings.seed})
    return {
        "parameters": table.parameters,
        "gflop": round(table.flops / 1e9, 3),
        "steps": trained.state.step,
        "batch": plan.train.batch_size,
        "seconds": round(trained.seconds, 2),
        "average": average,
        "nfe": count_nfe(settings, plan.process),
        "tried": tried,
        "sample": settings.model_dump(mode="json"),
        "params": entry.params,
        "fd_build": round(judges.build(finished.images(average, build, size.images // 4)), 1),
        **judges.report_on(finished.images(average, settings, size.images), kept_images(entry.name, seed)),
    }


def kept_images(name: str, seed: int) -> Path:
    """Return the file with the images of an entry that are reported on, for `benchmarks.spaces`."""
    return ROOT / f"runs/speedrun/images/{name}-{seed}.npy"


def choose(finished: Finished, count: int, judge: Judge) -> tuple[str, SampleSettings, list[dict[str, Any]]]:
    """Return the best average, then the best options of sampling with it, and the distance of each."""
    names, changes = list(finished.trained.averages), [{}, *finished.entry.tried]
    tried: list[dict[str, Any]] = []
    if len(names) + len(changes) == 2:  # no choice
        return names[0], finished.settings({}), tried

    def distance(average: str, change: dict[str, Any]) -> float:
        settings = finished.settings(change)
        settings = settings.model_copy(update={"seed": CHOICE_SEED + settings.seed})
        fd = round(judge(finished.images(average, settings, count)), 1)
        tried.append({"average": average, "change": change, "fd": fd})
        print(f"    {average}, {change or 'as it is'}: {fd:.1f}", flush=True)
        return fd

    by_average = {name: distance(name, {}) for name in names}
    average = min(by_average, key=by_average.__getitem__)
    by_change = [by_average[average], *(distance(average, change) for change in changes[1:])]
    return average, finished.settings(changes[by_change.index(min(by_change))]), tried


def card(entry: Entry, seed: int) -> dict[str, Any]:
    return {
        "entry": entry.name,
        "after": entry.after,
        "what": entry.what,
        "seed": seed,
        **({"budget": entry.seconds} if entry.seconds else {}),
        **made_by(torch.get_num_threads()),
    }


def main() -> None:
    contests = {contest.name: contest for contest in CONTESTS}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speedrun", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--contest", choices=contests, default="speedrun")
    parser.add_argument("--config", metavar="NAME", help="an entry; all without it")
    parser.add_argument("--seed", type=int, metavar="N", help="a seed; the entry's own without it")
    parser.add_argument("--seconds", type=float, help="of a training; the contest's without it")
    parser.add_argument("--steps", type=int, help="of a training, instead of a time")
    parser.add_argument("--images", type=int, help="to score; the contest's number without it")
    parser.add_argument("--render", action="store_true", help="update the page and run nothing")
    arguments = parser.parse_args()
    contest = contests[arguments.contest]
    entries = contest.read()
    seconds = None if arguments.steps else arguments.seconds or contest.size.seconds
    size = Size(seconds, arguments.images or contest.size.images)
    is_result = size == contest.size and not arguments.steps
    folder = contest.results if is_result else ROOT / "runs" / contest.name
    names = [arguments.config] if arguments.config else list(entries)
    if unknown := set(names) - entries.keys():
        raise SystemExit(f"no entry {unknown.pop()} in {contest.name}.yaml: it has {', '.join(entries)}")
    given = None if arguments.seed is None else (arguments.seed,)
    todo = [(name, seed) for name in names for seed in given or entries[name].seeds]
    todo = [(name, seed) for name, seed in todo if not (folder / f"{name}-{seed}.json").exists()]
    failed = run_all(contest, todo, size, folder, arguments.steps) if todo and not arguments.render else 0
    if is_result:
        page = contest.page.read_text(encoding="utf-8")
        write_text(contest.page, with_leaderboard(page, read_results(folder)))
    if failed:
        sys.exit(1)


def run_all(
    contest: Contest, todo: list[tuple[str, int]], size: Size, folder: Path, steps: int | None = None
) -> int:
    """Run, on two cores if the time counts, and store each result; return the number of failures.

    A training takes `steps`, if they are given.
    """
    if size.seconds:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
        torch.set_num_threads(CORES)
    failures, device = 0, default_device()
    with tempfile.TemporaryDirectory() as temporary:
        train, test = quality.prepared(contest.read()[todo[0][0]].config(0), Path(temporary))
        full = Judge(np.asarray(test.images), device)
        judges = Judges.of(full)
        floor = {"real": round(judges.report(np.asarray(train.images[: size.images])), 1)}
        for name, seed in todo:
            entry = contest.read()[name]  # here, since the best one may be new
            print(f"{name}, seed {seed}: {entry.what}, after {entry.after}", flush=True)
            if steps:
                entry = entry._replace(params=merge(entry.params, {"train": {"steps": steps}}))
            own = size._replace(seconds=entry.seconds) if entry.seconds and size == contest.size else size
            try:
                result = {**card(entry, seed), **run(entry, seed, own, train, judges, folder), **floor}
            except Exception:
                traceback.print_exc()
                failures += 1
                continue
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / f"{name}-{seed}.json", result)
            print(f"  fd {result['fd']:.1f} ({result['fd_full']:.1f} to all), {floor}", flush=True)
    return failures


if __name__ == "__main__":
    main()
