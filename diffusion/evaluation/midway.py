"""Scores of a network that is still in training: N images of its EMA against the reference, every K steps."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from diffusion.checkpoint import Artefact, save_artefact
from diffusion.code import code_digest, code_of
from diffusion.config import Config
from diffusion.evaluation.card import Card, differing, protocol_card
from diffusion.evaluation.extractors import load_extractor
from diffusion.evaluation.features import extract
from diffusion.evaluation.ranking import is_aside, rank_metric
from diffusion.evaluation.reference import Reference, make_reference, matching_reference
from diffusion.evaluation.scorer import Scorer
from diffusion.files import write_json
from diffusion.generate import generate, labels_of
from diffusion.grid import settings_card
from diffusion.images import to_nhwc
from diffusion.sampling import SAMPLERS
from diffusion.settings import SamplerConfig, SampleSettings
from diffusion.unet import UNet

Scores = dict[str, float]
Progress = Callable[[int, int], None]


class MidwayScorer:
    """Scores a network by `train.eval_images` images, by DDIM in `train.eval_steps` steps with η = 0.

    The images are those of the section `sample`, with their seed, so that every score is of the same noise.
    The reference is the stage's, or one made in `scratch` where that is not there. DiffctlError where the
    extractor's weights are missing.
    """

    def __init__(
        self,
        config: Config,
        prepared: Path,
        reference: Path,
        scratch: Path,
        device: torch.device,
        progress: Progress | None = None,
    ) -> None:
        section = config.evaluate
        self.train, self.batch_size, self.device = config.train, config.sample.batch_size, device
        self.features_at_once = section.batch_size
        shared = config.sample.model_dump(include=set(SamplerConfig.model_fields))
        steps = min(config.train.eval_steps, config.diffusion.timesteps)
        self.settings = SampleSettings(**shared, steps=steps, eta=0.0)
        self.extractor = load_extractor(section.extractor, section.weights, device)

        def opened(folder: Path) -> Reference | None:
            return matching_reference(folder, self.extractor, section.reference, prepared)

        found = opened(reference) or opened(scratch) or make_reference(config, prepared, scratch, progress)
        self.scorer = Scorer(found, 0, section.prc_images, device)

    @property
    def ranked_by(self) -> str:
        """The score that says which step is the best; lower is better."""
        card = {"extractor": self.scorer.spec.name, "num_images": self.train.eval_images}
        known = {"excess": 0.0} if self.scorer.reference.heldout is not None else {}
        return rank_metric({"card": card, "scores": known})

    @property
    def card(self) -> Card:
        """All that the scores depend on beside the weights."""
        card = protocol_card(
            settings_card(self.settings),
            self.train.eval_images,
            self.scorer.reference,
            self.scorer.most,
        )
        code = code_of("diffusion.evaluation.midway", SAMPLERS[self.settings.sampler])
        return {**card, "code": code_digest(code)}

    def scores(self, network: UNet, artefact: Artefact, progress: Progress) -> Scores:
        """The scores by name; the network is left as it was.

        `progress` gets (done, total) images at every sampling step, and may raise to stop.
        """
        total = self.train.eval_images
        training = network.training
        network.eval()
        parts = []
        try:
            for start in range(0, total, self.batch_size):
                indices = range(start, min(start + self.batch_size, total))
                images = generate(
                    network,
                    artefact,
                    self.settings,
                    indices,
                    labels_of(artefact, self.settings, indices),
                    self.device,
                    callback=lambda _, start=start: progress(start, total),  # type: ignore[misc]
                )
                parts.append(to_nhwc(images))
        finally:
            network.train(training)
        seen = extract(self.extractor, np.concatenate(parts), self.features_at_once)
        return {name: value for name, value in self.scorer.scores(seen).items() if not is_aside(name)}


class Checkpoints:
    """The scored weights of a training that are kept: the best, the last, or one every K steps.

    A folder with `scores.json` and self-describing files, `000000500.safetensors` after 500 steps. Scores of
    another protocol than `card` are forgotten: they say nothing of which is best.
    """

    def __init__(self, folder: Path, keep: str | int, ranked_by: str, card: Card) -> None:
        self.folder, self.keep, self.ranked_by, self.card = folder, keep, ranked_by, card

    def add(
        self, step: int, scores: Scores, network: UNet, artefact: Artefact
    ) -> tuple[Path | None, list[int]]:
        """Note the scores; gives the step's file if it is kept, and the steps whose files have gone."""
        known = self.scores() | {step: scores}
        self.folder.mkdir(parents=True, exist_ok=True)
        steps = {str(key): known[key] for key in known}
        write_json(self.folder / "scores.json", {"card": self.card, "steps": steps})
        kept = self._kept(known)
        path = self._path(step)
        if step in kept:
            save_artefact(path, network.state_dict(), artefact.model_copy(update={"step": step}))
        lying = sorted(int(file.stem) for file in self.folder.glob("*.safetensors"))
        gone = [old for old in lying if old not in kept]
        for old in gone:
            self._path(old).unlink()
        return path if step in kept else None, gone

    def scores(self) -> dict[int, Scores]:
        """What is known by step."""
        try:
            values = json.loads((self.folder / "scores.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        if differing([values["card"], self.card]):
            return {}
        return {int(step): scores for step, scores in values["steps"].items()}

    def _kept(self, known: dict[int, Scores]) -> set[int]:
        if isinstance(self.keep, int):
            return {step for step in known if step % self.keep == 0}
        if self.keep == "last":
            return {max(known)}
        return {min(known, key=lambda step: (known[step][self.ranked_by], step))}

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:09d}.safetensors"
