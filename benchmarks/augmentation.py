"""What augmentation gives small data: `python -m benchmarks.augmentation [digits' steps] [clothes' steps]`.

The digits (1,297 images) and 2,000 clothes of Fashion-MNIST, each trained by its profile with and without
`train.augment`, of the same seed and in the same number of steps. Of the average of the weights: the held-out
loss and the least that it was on the way; of 500 images in 20 DDIM steps by it: the excess of their Fréchet
distance over the floor, and memorisation. A data set of 0 steps is left out.

| what | promise |
| --- | --- |
| held-out loss, excess and memorisation | none: they are told |
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from diffusion.config import Config, load
from diffusion.data.prepare import prepare
from diffusion.evaluate.features.extract import Features, extract
from diffusion.evaluate.features.extractors import load_extractor
from diffusion.evaluate.features.reference import Reference
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.images.pixels import to_nhwc
from diffusion.images.store import Images, ImageStore, open_store, write_store
from diffusion.model.model_file import LoadedModel
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.asked import mixed_condition
from diffusion.sample.generate import generate
from diffusion.train.config import AUGMENTATIONS, AugmentConfig
from diffusion.train.distributed import ProcessGroup
from diffusion.train.heldout import LOSS, HeldOut
from diffusion.train.identity import TrainPlan, plan_training
from diffusion.train.loop import Silent, TrainState, new_state, train

CPU = torch.device("cpu")
PROFILES = Path(__file__).parent.parent / "profiles"
STEPS = {"digits": 1200, "fashion-mnist": 2800}
CLOTHES, IMAGES, SAMPLING_STEPS, BATCH, POINTS = 2000, 500, 20, 100, 10
WAYS = {
    "without": None,
    "without flips": AugmentConfig(kinds=tuple(kind for kind in AUGMENTATIONS if "flip" not in kind)),
    "all kinds": AugmentConfig(),
}


class Held(Silent):
    """Measures held-out losses."""

    def __init__(self, heldout: HeldOut) -> None:
        self.heldout = heldout

    def hold_out(self, step: int, network: torch.nn.Module, ema: torch.nn.Module) -> dict[str, float]:
        """The losses of both."""
        return self.heldout.losses(network, ema)


def few(store: ImageStore, folder: Path, count: int) -> ImageStore:
    """The first images alone."""
    assert store.labels is not None, "both sets have labels"
    labels = store.labels[:count]
    meta = {key: value for key, value in store.meta.items() if key not in ("count", "digest")}
    meta |= {"counts": np.bincount(labels, minlength=len(store.meta["classes"])).tolist()}
    return write_store(folder, np.asarray(store.images[:count]), labels, meta)


def planned(config: Config, store: ImageStore, steps: int, augment: AugmentConfig | None) -> TrainPlan:
    """The profile's training, so long and so augmented."""
    course = config.train.lr.model_copy(update={"warmup": min(config.train.lr.warmup, steps // 10)})
    changes = {"steps": steps, "lr": course, "augment": augment, "heldout_every": max(1, steps // POINTS)}
    section = config.train.model_copy(update=changes)
    return plan_training(config.model_copy(update={"train": section}), store.meta, CPU)


def trained(plan: TrainPlan, store: ImageStore, test: ImageStore) -> TrainState:
    """The plan's training, with held-out losses in its curve."""
    state = new_state(plan, CPU)
    train(state, store, ProcessGroup(CPU), Held(HeldOut(plan, test)), lambda state: None, lambda: None)
    return state


def images_of(state: TrainState) -> Images:
    """What the average of the weights makes."""
    settings, model = SampleSettings(steps=SAMPLING_STEPS), LoadedModel(state.ema.eval(), state.plan)
    parts = [range(start, start + BATCH) for start in range(0, IMAGES, BATCH)]
    made = (
        generate(model, settings, part, mixed_condition(state.plan, settings, part), CPU) for part in parts
    )
    return np.concatenate([to_nhwc(one) for one in made])


def scorer_of(store: ImageStore, test: ImageStore) -> tuple[Scorer, Sequence[str]]:
    """Scores against the training images, with the test split held out."""
    extractor = load_extractor("effnet-lite0-64")
    seen: list[Features] = [extract(extractor, np.asarray(one.images)) for one in (store, test)]
    said = {"extractor": extractor.spec.name, "reference_split": "train", "heldout_split": "test"}
    known = Reference(said, seen[0].features, seen[1], store.labels, test.labels)
    return Scorer(known, True, 10_000, extractor.device), ("excess", "memorisation", "memorisation_std")


def compared(config: Config, store: ImageStore, test: ImageStore, steps: int) -> None:
    """Train in each way, and print what came of it."""
    scorer, names = scorer_of(store, test)
    extractor = load_extractor("effnet-lite0-64")
    print(
        f"{config.data.name}: {len(store):,} images, {steps:,} steps of {config.train.batch_size}", flush=True
    )
    for way, augment in WAYS.items():
        began = time.process_time()
        state = trained(planned(config, store, steps, augment), store, test)
        took = time.process_time() - began
        scores = scorer.scores(extract(extractor, images_of(state)))
        losses = [row[LOSS] for row in state.history if LOSS in row]
        told = [f"held-out loss {losses[-1]:.4f} (least {min(losses):.4f})"]
        told += [*(f"{name} {scores[name]:.4g}" for name in names), f"{took:.0f} s of a processor"]
        print(f"  {way:<14} {'  '.join(told)}", flush=True)


def main(digits: int = STEPS["digits"], clothes: int = STEPS["fashion-mnist"]) -> None:
    """Compare on both sets."""
    with tempfile.TemporaryDirectory() as name:
        for profile, steps in (("digits", digits), ("fashion-mnist", clothes)):
            if not steps:
                continue
            folder, config = Path(name) / profile, load(PROFILES / f"{profile}.yaml")
            prepare(config.data, folder)
            store, test = open_store(folder / "train"), open_store(folder / "test")
            if len(store) > CLOTHES:
                store, test = few(store, folder / "few", CLOTHES), few(test, folder / "few-test", CLOTHES)
            compared(config, store, test, steps)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
