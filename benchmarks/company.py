"""How far rounding moves an image that is served in company: `python -m benchmarks.company [model file]`.

Without a file the digits' profile is trained in bf16 first. In each precision 64 images are made offline, and
by the engine beside requests of other lengths, samplers and classes; 16 are made offline one at a time too.
Told by steps and η are the shares of bytes that are further apart than so many grey levels; where any is, so
are the distances of both sets from the training images.

| what | promise |
| --- | --- |
| images in float32 | at most one grey level |
| images in bf16 | none: the shares are told |
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.rounding import CPU, PROFILE, STEPS, planned, trained
from diffusion.config import load
from diffusion.data.prepare import prepare
from diffusion.engine.engine import Engine
from diffusion.evaluate.features.extract import extract
from diffusion.evaluate.features.extractors import load_extractor
from diffusion.evaluate.features.reference import Reference
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.images.pixels import to_nhwc
from diffusion.images.store import open_store
from diffusion.model.model_file import LoadedModel, load_model, save_artefact
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.asked import mixed_condition
from diffusion.sample.generate import generate
from diffusion.train.identity import result_of

IMAGES, SINGLE = 64, 16
WAYS = [{"steps": steps, "eta": eta} for steps in (5, 20, 50) for eta in (0.0, 1.0)]
BESIDE = (
    {"steps": 7, "eta": 1.0},
    {"steps": 13},
    {"steps": 20, "sampler": "dpm-solver++"},
    {"steps": 40, "guidance": 1.0},
)
LEVELS = (0, 1, 2, 4, 8)


def offline(model: LoadedModel, settings: SampleSettings, indices: range) -> torch.Tensor:
    """The images as `diffctl sample` makes them."""
    return generate(model, settings, indices, mixed_condition(model.artefact, settings, indices), CPU)


def in_company(model: LoadedModel, settings: SampleSettings) -> torch.Tensor:
    """The same images, asked for in requests of three beside others, which join while these are at work."""
    with Engine(model, CPU) as engine:
        jobs, others = [], [SampleSettings.model_validate({"seed": 9, **values}) for values in BESIDE]
        for number, start in enumerate(range(0, IMAGES, 3)):
            for chosen, rows in ((others[number % len(others)], range(number % 4 + 1)),
                                 (settings, range(start, min(start + 3, IMAGES)))):  # fmt: skip
                jobs.append(engine.add(chosen, rows, mixed_condition(model.artefact, chosen, rows)))
            engine.step()
        while engine.jobs:
            engine.step()
    images = [job.images for job in jobs[1::2]]
    assert all(one is not None for one in images), [job.error for job in jobs]
    return torch.cat([one for one in images if one is not None])


def moved(images: torch.Tensor, others: torch.Tensor) -> str:
    """The shares of bytes that are further apart than each of LEVELS, and the most of all."""
    apart = (images.int() - others.int()).abs()
    shares = "  ".join(f">{level}: {float((apart > level).float().mean()):7.3%}" for level in LEVELS)
    return f"{shares}  most {int(apart.max()):>3}"


def scorer_of(folder: Path) -> Scorer:
    """Scores against the digits' training images."""
    store, test = open_store(folder / "train"), open_store(folder / "test")
    extractor = load_extractor("effnet-lite0-64")
    seen = [extract(extractor, np.asarray(one.images)) for one in (store, test)]
    said = {"extractor": extractor.spec.name, "reference_split": "train", "heldout_split": "test"}
    known = Reference(said, seen[0].features, seen[1], store.labels, test.labels)
    return Scorer(known, True, 10_000, extractor.device)


def compared(model: LoadedModel, scorer: Scorer) -> None:
    """Print, for each way to sample, what company and being the only one change."""
    extractor = load_extractor("effnet-lite0-64")
    for values in WAYS:
        settings = SampleSettings.model_validate(values)
        alone, served = offline(model, settings, range(IMAGES)), in_company(model, settings)
        single = torch.cat([offline(model, settings, range(i, i + 1)) for i in range(SINGLE)])
        way = f"{settings.steps:>3} steps, η {settings.eta:g}"
        print(f"{way}, in company     {moved(served, alone)}")
        print(f"{way}, one at a time  {moved(single, alone[:SINGLE])}", flush=True)
        for images in (alone, served) if not torch.equal(alone, served) else ():
            scores = scorer.scores(extract(extractor, to_nhwc(images)))
            told = (f"{name} {scores[name]:.5g}" for name in extractor.spec.distances if name in scores)
            print(f"  {', '.join(told)}", flush=True)


def main(file: str | None = None) -> None:
    """Train or read the model, and compare in both precisions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(load(PROFILE).data, folder)
        path = folder / "model.safetensors" if file is None else Path(file)
        if file is None:
            store = open_store(folder / "train")
            state, _ = trained(planned(store, STEPS, 0, "bf16"), store)
            save_artefact(path, state.ema.state_dict(), result_of(state.plan))
        scorer, loaded = scorer_of(folder), load_model(path)
        for precision in ("bf16", "fp32"):
            print(f"in {precision}:", flush=True)
            artefact = loaded.artefact.model_copy(update={"precision": precision})
            compared(LoadedModel(load_model(path).network, artefact), scorer)


if __name__ == "__main__":
    main(*sys.argv[1:])
