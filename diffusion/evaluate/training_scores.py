"""Scores during training: N images of the EMA network against the reference, every K steps."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import NonNegativeInt
from torch import nn

from diffusion.choice.ranking import is_auxiliary, ranking_score
from diffusion.code_digest import code_digest, module_digests
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extractors import Extractor, Progress, extract
from diffusion.evaluate.features.reference_features import Reference, extraction_code
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.images.pixels import to_nhwc
from diffusion.model.model_file import Artefact, LoadedModel, save_artefact
from diffusion.model.precision import freeze
from diffusion.protocol.card import Card, differing_fields
from diffusion.protocol.grid import settings_card
from diffusion.protocol.guidance_rules import GUIDANCE_RULES, implied_rule
from diffusion.protocol.resolution import resolve_settings
from diffusion.protocol.settings import CommonSettings, SampleSettings
from diffusion.protocol.spacing import SPACINGS
from diffusion.sample.conditions import image_condition
from diffusion.sample.generate import generate, should_compile
from diffusion.sample.guides import held_out
from diffusion.sample.network_files import NetworkArtefacts
from diffusion.sample.sampling_card import sampling_code
from diffusion.system.checksums import read_json
from diffusion.system.files import write_json
from diffusion.system.section import Section

if TYPE_CHECKING:
    from diffusion.config import Config

Scores = dict[str, float]


@dataclass(frozen=True)
class ValidationImages:
    """Images 0 … count − 1 by these settings, in batches. All scores use the same noise."""

    settings: SampleSettings
    count: int
    batch_size: int


class ValidationScorer:
    """Score a network by the same few images after any number of steps; the score `ranked_by` ranks them."""

    def __init__(
        self, images: ValidationImages, extractor: Extractor, reference: Reference, section: EvaluateConfig
    ) -> None:
        self.images, self.extractor = images, extractor
        self.features_at_once = section.batch_size
        without_intervals = section.model_copy(update={"confidence_intervals": False})
        self.scorer = Scorer(reference, without_intervals, extractor.device)

        has_floor = reference.heldout is not None
        self.ranked_by = ranking_score(self.scorer.spec, images.count, has_floor=has_floor)

    def card(self, artefact: Artefact) -> Card:
        """Return everything that the scores depend on, except the weights; `artefact` describes the model."""
        settings = self.images.settings
        networks = NetworkArtefacts(artefact, real=held_out(artefact.network).real)
        own = module_digests("diffusion.evaluate.training_scores")
        code = {
            **own,
            **extraction_code(self.extractor.spec),
            **sampling_code(settings, networks),
        }
        card = self.scorer.card(settings_card(settings, **networks.digests), self.images.count)
        return {**card, "code": code_digest(code)}

    def scores(self, network: nn.Module, artefact: Artefact, progress: Progress) -> Scores:
        """Return scores of a network in eval mode by name; `progress`(done, total) may raise to stop."""
        total, settings, at_once = self.images.count, self.images.settings, self.images.batch_size
        device = next(network.parameters()).device  # on an Apple GPU not that of the extractor
        fast = should_compile(artefact, settings, -(-total // at_once), device)
        # A copy, so that a compiled graph is released with it.
        model = LoadedModel(freeze(copy.deepcopy(network)) if fast else network, artefact)
        parts, guides = [], held_out(artefact.network)
        for start in range(0, total, at_once):
            indices = range(start, min(start + at_once, total))
            images = generate(
                model,
                settings,
                indices,
                image_condition(model, settings, indices, guides),
                device,
                callback=lambda _, start=start: progress(start, total),  # type: ignore[misc]
                fast=fast,
            )
            parts.append(to_nhwc(images))
        seen = extract(self.extractor, np.concatenate(parts), self.features_at_once)
        scores = self.scorer.scores(seen, enlarged=guides.real is not None)
        return {name: value for name, value in scores.items() if not is_auxiliary(name)}


class _KnownScores(Section):
    """The contents of `scores.json` in a training's checkpoint folder."""

    card: Card
    steps: dict[NonNegativeInt, Scores]


class ScoredCheckpoints:
    """The kept checkpoints of a training: the best, the last, or one every K steps.

    The folder holds `scores.json` and model files such as `000000500.safetensors`. Scores of another protocol
    than `card` are ignored, since they cannot be compared: the best checkpoint by them is kept too.
    """

    def __init__(self, folder: Path, keep: str | int, ranked_by: str, card: Card) -> None:
        self.folder, self.keep, self.ranked_by, self.card = folder, keep, ranked_by, card

    def save(
        self, step: int, scores: Scores, network: nn.Module, artefact: Artefact
    ) -> tuple[Path | None, list[int]]:
        """Save the network if it is kept; return its file, and the steps that `record` will remove."""
        present = self._present()
        kept, path = self._kept(self.scores() | {step: scores}, present | {step}), self._path(step)
        if step in kept:
            save_artefact(path, network.state_dict(), artefact.model_copy(update={"step": step}))
        return path if step in kept else None, sorted(present - kept)

    def record(self, step: int, scores: Scores, removed: Iterable[int]) -> None:
        """Store the scores of a saved step, which is repeated without them, and remove other steps."""
        known = {str(key): value for key, value in (self.scores() | {step: scores}).items()}
        write_json(self.folder / "scores.json", {"card": self.card, "steps": known})
        for old in removed:
            self._path(old).unlink()

    def scores(self) -> dict[int, Scores]:
        """Return the stored scores by step."""
        if self.changed_fields():
            return {}
        return {step: scores for step, scores in self._stored().steps.items() if self.ranked_by in scores}

    def changed_fields(self) -> list[str]:
        """Return the fields in which the protocol of the stored scores differs, none without scores."""
        return list(differing_fields([self._stored().card, self.card]))

    def _stored(self) -> _KnownScores:
        try:
            return read_json(self.folder / "scores.json", _KnownScores)
        except FileNotFoundError:
            return _KnownScores(card=self.card, steps={})

    def _kept(self, known: dict[int, Scores], present: set[int]) -> set[int]:
        """Return the steps to keep, of the steps with files, `present`."""
        if isinstance(self.keep, int):  # whatever the protocol of their scores
            return {step for step in present if step % self.keep == 0}
        ranked = known.keys() & present
        if self.keep == "last":
            return {max(ranked)}
        best = min(ranked, key=lambda step: (known[step][self.ranked_by], step))
        return {best} | (present - known.keys())

    def _present(self) -> set[int]:
        return {int(file.stem) for file in self.folder.glob("*.safetensors")}

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:09d}.safetensors"


def scored_images(config: "Config") -> ValidationImages:
    """Return the images that `train.eval_every` scores, by the section `sample` with η = 0.

    No other network is used: no classifier, and no guidance if its rule needs a guide. Learned times, which
    are of a trained model, are replaced by the process's default ones. UsageError for settings that do not
    fit.
    """
    sample, train = config.sample, config.train
    shared = sample.model_dump(include=set(CommonSettings.model_fields))
    shared["classifier"] = shared["base"] = None
    if GUIDANCE_RULES[shared["guidance_rule"] or implied_rule(shared["guide"])].needs_guide:
        shared["guidance"] = 0.0
    if SPACINGS[shared["spacing"]].has_levels:
        del shared["spacing"], shared["spacing_options"]
    values = {**shared, "steps": min(train.eval_steps, config.process.max_steps), "eta": 0.0}
    where = "the scores of train.eval_every"
    settings = resolve_settings(config.process.schedule, values, where=where).settings
    return ValidationImages(settings, train.eval_images, sample.batch_size)
