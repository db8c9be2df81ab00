"""Images in a few network calls after 480 s of training: `python -m benchmarks.few_steps [--seed N]`.

The speedrun's entry `record-chosen` is trained with as many steps as 240 s gave it, then its average is tuned
for consistency with as many steps as 240 s give. The tuned model in 1, 2, 4 and 8 calls is compared with the
best of all other samplers and spacings of the untuned one. Those are chosen for each number of calls with 500
images, by another part of the test split than the reported one. Results are in docs/few_steps/, the table is
in docs/few_steps.md. Steps are counted, so that the machine need not be idle; `--time` measures a step.
"""

import argparse
import os
import statistics
import time
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from benchmarks import ROOT, made_by, quality
from benchmarks.quality import Judge
from benchmarks.speedrun import CHOICE_SEED, CONTESTS, Judges, merge, read_results
from diffusion.analysis.learned_grid import TRAJECTORIES, learned_levels, teacher_settings
from diffusion.config import Config
from diffusion.images.store import ImageStore
from diffusion.model.model_file import LoadedModel, load_model, save_artefact
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampling_steps import count_nfe
from diffusion.system.devices import default_device
from diffusion.system.files import write_json, write_text
from diffusion.train.plan import TrainPlan
from diffusion.train.planning import plan_training
from diffusion.train.pretrained import store_pretrained
from docs.site.tables import with_part

ENTRY = "record-chosen"
OPTIONS = yaml.safe_load((ROOT / "benchmarks/few_steps.yaml").read_text(encoding="utf-8"))
CALLS = (1, 2, 4, 8)
DDIM_CALLS = (*CALLS, 10)
SAMPLERS = ("ddim", "dpm-solver++", "ipndm", "unipc")
START = {"sigma_max": 80.0}  # of karras: the cosine schedule ends at 20,291
FEW, MANY = 500, 2000  # images to choose a sampler by, and to report on
PAGE, RESULTS, WORK = ROOT / "docs/few_steps.md", ROOT / "docs/few_steps", ROOT / "runs/few_steps"
Result = dict[str, Any]
Levels = dict[int, list[float]]


class Run(NamedTuple):
    """What the trainings of a seed have in common."""

    seed: int
    store: ImageStore
    judges: Judges

    def config(self, changes: dict[str, Any]) -> Config:
        """Return the entry's params with changes."""
        entry = CONTESTS[0].read()[ENTRY]
        return entry._replace(params=merge(entry.params, changes)).config(self.seed)

    def plan(self, changes: dict[str, Any]) -> TrainPlan:
        """Return the plan of a training with these changes of the entry."""
        return plan_training(self.config(changes), self.store.meta, default_device())

    def model(self, name: str, changes: dict[str, Any]) -> Path:
        """Train with these changes unless the model file is there; return its path."""
        path = WORK / f"{name}-{self.seed}.safetensors"
        if not path.exists():
            plan, began = self.plan(changes), time.perf_counter()
            trained = quality.train_for(None, plan, self.store, default_device())
            average = trained.averages[f"decay {plan.train.ema_decay:g}"]
            save_artefact(path, average.state_dict(), plan)
            print(f"  {name}: {plan.train.steps} steps in {time.perf_counter() - began:.0f} s", flush=True)
        return path

    def distance(self, loaded: LoadedModel, settings: SampleSettings, judge: Judge, count: int) -> float:
        """Return the distance of so many images."""
        return round(judge(quality.images_of(loaded, settings, count, default_device())), 1)


def base_steps() -> int:
    """Return the mean number of steps that 240 s gave the entry."""
    results = [result for result in read_results(CONTESTS[0].results) if result["entry"] == ENTRY]
    return round(statistics.fmean(result["steps"] for result in results))


def tuning(base: Path) -> dict[str, Any]:
    """Return the changes of the entry for the tuning of its model."""
    _, artefact = store_pretrained(base)
    changes: dict[str, Any] = OPTIONS["params"]
    return {**changes, "train": {**changes["train"], "init_from": {"sha256": artefact.model_sha256}}}


def learned(loaded: LoadedModel) -> Levels:
    """Return the noise levels learned for the model, for each number of calls but 1."""
    teacher = teacher_settings(loaded.artefact.process)
    return learned_levels(loaded, teacher, CALLS[1:], TRAJECTORIES, TRAJECTORIES, lambda *_: None)


def candidates(calls: int, seed: int, levels: Levels) -> list[SampleSettings]:
    """Return the settings of an ordinary model to choose from, with so many calls; DDIM's own comes first."""
    spacings: list[dict[str, Any]] = [{"spacing": "uniform"}, {"spacing": "karras", "spacing_options": START}]
    if calls in levels:
        spacings.append({"spacing": "learned", "spacing_options": {"levels": levels[calls]}})
    return [
        SampleSettings(steps=calls, seed=seed, sampler=sampler, **spacing)
        for sampler, spacing in product(SAMPLERS if calls > 1 else SAMPLERS[:1], spacings)
    ]


def ordinary(run: Run, loaded: LoadedModel, calls: int, levels: Levels) -> Result:
    """Return what was tried with so many calls, and the best with its distance."""
    tried: list[tuple[float, SampleSettings]] = []
    for settings in candidates(calls, run.seed, levels):
        assert count_nfe(settings, loaded.artefact.process) == calls
        other = settings.model_copy(update={"seed": CHOICE_SEED + run.seed})
        tried.append((run.distance(loaded, other, run.judges.choice, FEW), settings))
    best = min(tried, key=lambda pair: pair[0])[1]
    return {
        "tried": [{**described(settings), "fd": fd} for fd, settings in tried],
        "best": {**described(best), "fd": run.distance(loaded, best, run.judges.report, MANY)},
    }


def described(settings: SampleSettings) -> dict[str, Any]:
    """Return what differs between the candidates."""
    return {"sampler": settings.sampler, "spacing": settings.spacing}


def measure(run: Run) -> Result:
    """Train, tune, sample and score; return the result."""
    steps = base_steps()
    base = run.model("base", {"train": {"steps": steps}})
    tuned = load_model(run.model("tuned", tuning(base)))
    loaded = load_model(base)
    levels = learned(loaded)
    consistency = {"sampler": "consistency", "spacing": "karras", "spacing_options": START}

    def distance(model: LoadedModel, calls: int, **options: Any) -> float:
        settings = SampleSettings(steps=calls, seed=run.seed, **options)
        return run.distance(model, settings, run.judges.report, MANY)

    return {
        "base_steps": steps,
        "params": OPTIONS["params"],
        "tuned": {calls: distance(tuned, calls, **consistency) for calls in CALLS},
        "ddim": {calls: distance(loaded, calls, sampler="ddim") for calls in DDIM_CALLS},
        "ordinary": {calls: ordinary(run, loaded, calls, levels) for calls in CALLS},
    }


def table(results: list[Result]) -> str:
    """Return the table of the results: mean and standard deviation of the seeds."""
    head = "| NFE | tuned | best other sampler | chosen | DDIM |"
    rows = [head, "|" + " --- |" * 5]
    for calls in map(str, DDIM_CALLS):
        found = {"tuned": "", "best": "", "chosen": ""}
        if int(calls) in CALLS:
            others = [result["ordinary"][calls]["best"] for result in results]
            found["tuned"] = _mean([result["tuned"][calls] for result in results])
            found["best"] = _mean([one["fd"] for one in others])
            found["chosen"] = "; ".join(sorted({f"{one['sampler']}, {one['spacing']}" for one in others}))
        ddim = _mean([result["ddim"][calls] for result in results])
        rows.append(f"| {calls} | {found['tuned']} | {found['best']} | {found['chosen']} | {ddim} |")
    first = results[0]
    note = f"{len(results)} seeds, {MANY:,} images each, real training images: {first['real']:.1f}. "
    note += f"Commit `{first['commit']}`, {first['date']}, torch {first['machine'].rpartition('torch ')[2]}."
    return "\n".join([*rows, "", note])


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.0f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.0f}{spread}"


def seconds_per_step(run: Run) -> float:
    """Return the seconds of a tuning step on this machine, by two short trainings."""
    took = {}
    for steps in (5, 45):
        plan = run.plan(merge(tuning(WORK / f"base-{run.seed}.safetensors"), {"train": {"steps": steps}}))
        took[steps] = quality.train_for(None, plan, run.store, default_device()).seconds
    return (took[45] - took[5]) / 40


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_steps", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--time", action="store_true", help="only measure a tuning step, after the training")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    os.chdir(WORK)
    train, test = quality.prepared(CONTESTS[0].read()[ENTRY].config(0), WORK / "data")
    judges = Judges.of(Judge(np.asarray(test.images), default_device()))
    run = Run(arguments.seed, train, judges)
    if arguments.time:
        run.model("base", {"train": {"steps": base_steps()}})
        print(f"{seconds_per_step(run):.4f} s a step, {torch.get_num_threads()} threads")
        return
    real = round(judges.report(np.asarray(train.images[:MANY])), 1)
    result = {"seed": run.seed, **made_by(torch.get_num_threads()), **measure(run), "real": real}
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{run.seed}.json", result)
    results = read_results(RESULTS)
    write_text(PAGE, with_part(PAGE.read_text(encoding="utf-8"), "few-steps", table(results)))


if __name__ == "__main__":
    main()
