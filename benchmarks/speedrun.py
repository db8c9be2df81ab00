"""The Fashion-MNIST speedrun: `python -m benchmarks.speedrun [--config NAME] [--seed N] [--seconds 240]`.

1. The best Fréchet distance (`effnet-lite0-64`) of 2,000 Fashion-MNIST images, ten classes in equal numbers.
2. 240 s of training on two CPU cores: wall-clock time, with the building of the network, without data
   preparation and imports. Nothing pretrained.
3. The learning rate follows the elapsed share of the time, so that the budget is used whole.
4. A sample takes 50 NFE. Entries with more are listed apart, with their NFE.
5. The weights' average and the options of sampling (w, η, sampler) are chosen on one half of the test split,
   with 1,000 images each. The distance is to the other half, 5,000 images.
6. A record has three seeds of training and sampling: 0, 1 and 2. Mean and standard deviation are reported.
7. Entries are options of params.yaml, in `benchmarks/speedrun.yaml`. They use released code of this project.
8. diffusers' training example and real training images are scored in the same way.
9. A result is a JSON file in `docs/speedrun/`: all options, date, commit, machine, NFE, what was chosen.
10. The machine is otherwise idle. A record is compared with runs on the same machine.

Without --config every entry runs with its seeds. A result that exists is not computed again. Other --seconds
or --images are tries: their results are in `runs/speedrun/`. `--render` only updates docs/speedrun.md.
"""

import argparse
import json
import platform
import re
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from benchmarks import quality
from benchmarks.quality import IMAGES, SECONDS, STEPS, Judge, Size, Trained
from diffusion.config import Config, parse
from diffusion.images.store import Images
from diffusion.model.model_file import LoadedModel
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampling_steps import count_nfe
from diffusion.show.network_table import model
from diffusion.system.devices import default_device
from diffusion.system.files import write_json, write_text
from diffusion.train.plan import TrainPlan, plan_training
from docs.site.leaderboard_page import with_leaderboard

ROOT = Path(__file__).parent.parent
ENTRIES, RESULTS, PAGE = (
    Path(__file__).with_suffix(".yaml"),
    ROOT / "docs/speedrun",
    ROOT / "docs/speedrun.md",
)
TRIES = ROOT / "runs/speedrun"
DIFFUSERS = "diffusers"


class Entry(NamedTuple):
    """An entry of speedrun.yaml, with the options of those that it builds on.

    `sample` are options of sampling, `tried` lists changes of them to choose from.
    """

    name: str
    what: str
    params: dict[str, Any]
    sample: dict[str, Any]
    tried: list[dict[str, Any]]
    seeds: tuple[int, ...]

    def config(self, seed: int) -> Config:
        """Return the params of a training with this seed."""
        rest = {"sample": {"num_images": 2}, "sweep": {"steps": [1], "eta": [0.0]}, "evaluate": {}}
        return parse(merge({**self.params, **rest}, {"train": {"seed": seed}}), self.name)

    def settings(self, seed: int, change: dict[str, Any]) -> SampleSettings:
        """Return the options of sampling with a change."""
        return SampleSettings(**{"steps": STEPS, "seed": seed, **self.sample, **change})


class Judges(NamedTuple):
    """The distances to the halves of the test split, and to all of it."""

    choice: Judge
    report: Judge
    full: Judge


def read_entries(path: Path = ENTRIES) -> dict[str, Entry]:
    """Read the entries; each has the options of its `after` and its own."""
    entries: dict[str, Entry] = {}
    for name, given in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        before = entries[given["after"]] if "after" in given else Entry("", "", {}, {}, [], ())
        entries[name] = Entry(
            name,
            given["what"],
            merge(before.params, given.get("params", {})),
            before.sample | given.get("sample", {}),
            given.get("tried", before.tried),
            tuple(given.get("seeds", (0,))),
        )
    return entries


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the changes, section by section; None removes a key."""
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return {key: value for key, value in merged.items() if value is not None}


def run(entry: Entry, seed: int, size: Size, data: quality.Data, judges: Judges) -> dict[str, Any]:
    """Train, choose, sample and score; return the result."""
    device = default_device()
    plan = plan_training(entry.config(seed), data.train.meta, device)
    if entry.name == DIFFUSERS:
        images, how = quality.theirs(plan, data.train, size, device)
        return {"how": how, "nfe": size.steps} | scores(images, judges)
    trained = quality.train_for(size.seconds, plan, data.train, device)
    table = model(plan.network)
    average, settings, tried = choose(entry, seed, size, plan, trained, judges.choice)
    images = quality.images_of(LoadedModel(trained.averages[average], plan), settings, size.images, device)
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
        **scores(images, judges),
    }


def choose(
    entry: Entry, seed: int, size: Size, plan: TrainPlan, trained: Trained, judge: Judge
) -> tuple[str, SampleSettings, list[dict[str, Any]]]:
    """Return the best average, then the best options of sampling with it, and the distance of each."""
    tried: list[dict[str, Any]] = []

    def distance(average: str, change: dict[str, Any]) -> float:
        loaded = LoadedModel(trained.averages[average], plan)
        images = quality.images_of(loaded, entry.settings(seed, change), size.images // 2, default_device())
        tried.append({"average": average, "change": change, "fd": round(judge(images), 1)})
        print(f"    {average}, {change or 'as it is'}: {tried[-1]['fd']:.1f}", flush=True)
        return float(tried[-1]["fd"])

    names, changes = list(trained.averages), [{}, *entry.tried]
    found = {name: distance(name, {}) for name in names} if len(names) + len(changes) > 2 else {}
    average = min(found, key=found.__getitem__) if found else names[0]
    by_change = [found.get(average, 0.0), *(distance(average, change) for change in changes[1:])]
    change = changes[by_change.index(min(by_change))]
    return average, entry.settings(seed, change), tried


def scores(images: Images, judges: Judges) -> dict[str, float]:
    """Return the distance to the reported half, and to the whole test split."""
    return {"fd": round(judges.report(images), 1), "fd_full": round(judges.full(images), 1)}


def card(entry: Entry, seed: int) -> dict[str, Any]:
    """Return who computed a result, where and when."""
    changed = git("diff", "HEAD", "--name-only", "--", "diffusion", "benchmarks")
    return {
        "entry": entry.name,
        "what": entry.what,
        "seed": seed,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": git("rev-parse", "--short=7", "HEAD") + ("+" if changed else ""),
        "machine": machine(),
    }


def git(*arguments: str) -> str:
    """Return the output of a git command in this repository."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def machine() -> str:
    """Return processor, threads and torch."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    name = names[0] if names else platform.processor()
    return f"{torch.get_num_threads()} cores of {name}, torch {torch.__version__.partition('+')[0]}"


def render(folder: Path = RESULTS, page: Path = PAGE) -> None:
    """Write the leaderboard of the folder's results into the page."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    write_text(page, with_leaderboard(page.read_text(encoding="utf-8"), results))


def main() -> None:
    """Run the requested entries and update the page."""
    arguments = parser().parse_args()
    entries = read_entries()
    size = Size(arguments.seconds, arguments.images)
    folder = RESULTS if size == Size() else TRIES
    names = [arguments.config] if arguments.config else list(entries)
    if unknown := set(names) - entries.keys():
        raise SystemExit(f"no entry {unknown.pop()} in {ENTRIES.name}: it has {', '.join(entries)}")
    seeds = {name: entries[name].seeds if arguments.seed is None else (arguments.seed,) for name in names}
    todo = [(entries[name], seed) for name in names for seed in seeds[name]]
    todo = [(entry, seed) for entry, seed in todo if not (folder / f"{entry.name}-{seed}.json").exists()]
    if todo and not arguments.render:
        with tempfile.TemporaryDirectory() as temporary:
            _run_all(todo, size, folder, Path(temporary))
    if folder == RESULTS:
        render()


def _run_all(todo: list[tuple[Entry, int]], size: Size, folder: Path, temporary: Path) -> None:
    data, device = quality.prepared(todo[0][0].config(0), temporary), default_device()
    test = np.asarray(data.test.images)
    judges = Judges(*(Judge(images, device) for images in (test[::2], test[1::2], test)))
    real = round(judges.report(np.asarray(data.train.images[: size.images])), 1)
    for entry, seed in todo:
        print(f"{entry.name}, seed {seed}: {entry.what}", flush=True)
        result = {**card(entry, seed), **run(entry, seed, size, data, judges), "real": real}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{entry.name}-{seed}.json", result)
        print(f"  fd {result['fd']:.1f} ({result['fd_full']:.1f} to all), real {real:.1f}", flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speedrun", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", metavar="NAME", help="an entry of speedrun.yaml; all without it")
    parser.add_argument("--seed", type=int, metavar="N", help="a seed; the entry's own without it")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--render", action="store_true", help="update docs/speedrun.md and run nothing")
    return parser


if __name__ == "__main__":
    main()
