"""Images in a few network calls after 480 s of training: `python -m benchmarks.few_steps [--seed N]`.

The speedrun's entry `record-chosen` is trained with as many steps as 240 s gave it, then its average is tuned
for consistency, which takes as long. The rival is the same entry trained twice as long, with the best of all
other samplers and spacings. Times and samplers of both are chosen for each number of calls with 500 images,
by another part of the test split than the reported one. Results are in docs/few_steps/, the table is in
docs/few_steps.md. Steps are counted, so that the machine need not be idle, and trained models are kept.
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
from diffusion.analysis.learned_times import TRAJECTORIES, learned_levels, teacher_settings
from diffusion.config import Config
from diffusion.images.store import ImageStore
from diffusion.model.model_file import LoadedModel, load_model, save_artefact
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampling_steps import count_nfe
from diffusion.system.devices import default_device
from diffusion.system.files import write_json, write_text
from diffusion.system.section import fingerprint
from diffusion.train.plan import TrainPlan, plan_training
from diffusion.train.pretrained import store_pretrained
from docs.site.tables import with_part

ENTRY = "record-chosen"
OPTIONS = yaml.safe_load((ROOT / "benchmarks/few_steps.yaml").read_text(encoding="utf-8"))
CALLS = (1, 2, 4, 8)
DDIM_CALLS = (*CALLS, 10)
SAMPLERS = ("ddim", "dpm-solver++", "ipndm", "unipc")
SIGMA_MAX = 80.0  # of the first call: the cosine schedule ends at 20,291
SIGMA_MID = (0.4, 0.8, 1.2)  # of the second of two consistency calls
SIGMA_MIN = (0.1, 0.3, 0.6)  # of the last call
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
        path = WORK / f"{name}-{fingerprint(self.config(changes).model_dump(mode='json'))}.safetensors"
        if not path.exists():
            plan, began = self.plan(changes), time.perf_counter()
            trained = quality.train_for(None, plan, self.store, default_device())
            average = trained.averages[f"decay {plan.train.ema_decay:g}"]
            save_artefact(path, average.state_dict(), plan)
            print(f"  {name}: {plan.train.steps} steps in {time.perf_counter() - began:.0f} s", flush=True)
        return path

    def distance(self, loaded: LoadedModel, settings: SampleSettings) -> float:
        """Return the reported distance of a model's images."""
        return _distance(loaded, settings, self.judges.report, MANY)

    def best(self, loaded: LoadedModel, candidates: list[SampleSettings]) -> Result:
        """Return what was tried, and the best of it with its reported distance."""
        tried: list[tuple[float, SampleSettings]] = []
        for settings in candidates:
            assert count_nfe(settings, loaded.artefact.process) == settings.steps
            other = settings.model_copy(update={"seed": CHOICE_SEED + self.seed})
            tried.append((_distance(loaded, other, self.judges.choice, FEW), settings))
        chosen = min(tried, key=lambda pair: pair[0])[1]
        return {
            "tried": [{**described(settings), "fd": fd} for fd, settings in tried],
            "best": {**described(chosen), "fd": self.distance(loaded, chosen)},
        }


def _distance(loaded: LoadedModel, settings: SampleSettings, judge: Judge, count: int) -> float:
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


def karras(**options: float) -> dict[str, Any]:
    """Return the spacing `karras` from SIGMA_MAX with options."""
    return {"spacing": "karras", "spacing_options": {"sigma_max": SIGMA_MAX, **options}}


def tuned_candidates(calls: int, seed: int) -> list[SampleSettings]:
    """Return the settings of a tuned model to choose from, with so many calls."""
    tried: list[dict[str, Any]] = [karras()]
    if calls == 2:
        tried = [{**karras(), "sampler_options": {"sigma_mid": level}} for level in SIGMA_MID]
    elif calls > 2:
        tried = [karras(sigma_min=level) for level in SIGMA_MIN]
    return [SampleSettings(steps=calls, seed=seed, sampler="consistency", **one) for one in tried]


def candidates(calls: int, seed: int, levels: Levels) -> list[SampleSettings]:
    """Return the settings of an ordinary model to choose from, with so many calls."""
    spacings = [{"spacing": "uniform"}, {"spacing": "trailing"}, karras()]
    if calls > 1:
        learned = {"spacing": "learned", "spacing_options": {"levels": levels[calls]}}
        spacings = [learned, *spacings[1:], karras(sigma_min=SIGMA_MIN[0]), karras(sigma_min=SIGMA_MIN[1])]
    return [
        SampleSettings(steps=calls, seed=seed, sampler=sampler, **spacing)
        for sampler, spacing in product(SAMPLERS if calls > 1 else SAMPLERS[:1], spacings)
    ]


def described(settings: SampleSettings) -> dict[str, Any]:
    """Return what differs between the candidates."""
    changed = settings.model_dump(mode="json", include={"sampler", "spacing"})
    levels = {**settings.sampler_options, **settings.spacing_options}
    return changed | {key: value for key, value in levels.items() if key in ("sigma_mid", "sigma_min")}


def measure(run: Run) -> Result:
    """Train, tune, sample and score; return the result."""
    steps = base_steps()
    base = run.model("base", {"train": {"steps": steps}})
    tuned = load_model(run.model("tuned", tuning(base)))
    longer = load_model(run.model("longer", {"train": {"steps": 2 * steps}}))
    levels = learned(longer)

    def ddim(loaded: LoadedModel) -> dict[int, float]:
        return {n: run.distance(loaded, SampleSettings(steps=n, seed=run.seed)) for n in DDIM_CALLS}

    return {
        "base_steps": steps,
        "params": OPTIONS["params"],
        "tuned": {calls: run.best(tuned, tuned_candidates(calls, run.seed)) for calls in CALLS},
        "other": {calls: run.best(longer, candidates(calls, run.seed, levels)) for calls in CALLS},
        "ddim": ddim(load_model(base)),
        "ddim_longer": ddim(longer),
    }


def table(results: list[Result]) -> str:
    """Return the table of the results: mean and standard deviation of the seeds."""
    head = "| NFE | tuned | with | best other sampler | with | DDIM | DDIM after 240 s |"
    rows = [head, "|" + " --- |" * 7]
    for calls in map(str, DDIM_CALLS):
        cells = [calls]
        for kind in ("tuned", "other"):
            best = [result[kind][calls]["best"] for result in results if calls in result[kind]]
            cells += [_mean([one["fd"] for one in best]), "; ".join(sorted({_words(one) for one in best}))]
        cells += [_mean([result[kind][calls] for result in results]) for kind in ("ddim_longer", "ddim")]
        rows.append(f"| {' | '.join(cells)} |")
    first = results[0]
    note = f"{len(results)} seeds, {MANY:,} images each, real training images: {first['real']:.1f}. "
    note += f"Commit `{first['commit']}`, {first['date']}, torch {first['machine'].rpartition('torch ')[2]}."
    return "\n".join([*rows, "", note])


def _words(best: Result) -> str:
    levels = [f"{key} {best[key]:g}" for key in ("sigma_mid", "sigma_min") if best.get(key)]
    names = [best["sampler"]] if best["sampler"] != "consistency" else []
    spacing = [] if best["spacing"] == "karras" and levels else [best["spacing"]]
    return ", ".join([*names, *spacing, *levels])


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.0f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.0f}{spread}" if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_steps", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    os.chdir(WORK)
    train, test = quality.prepared(CONTESTS[0].read()[ENTRY].config(0), WORK / "data")
    judges = Judges.of(Judge(np.asarray(test.images), default_device()))
    run = Run(arguments.seed, train, judges)
    real = round(judges.report(np.asarray(train.images[:MANY])), 1)
    result = {"seed": run.seed, **made_by(torch.get_num_threads()), **measure(run), "real": real}
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{run.seed}.json", result)
    results = read_results(RESULTS)
    write_text(PAGE, with_part(PAGE.read_text(encoding="utf-8"), "few-steps", table(results)))


if __name__ == "__main__":
    main()
