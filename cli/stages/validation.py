"""Scores during a training, logged by step, with their checkpoints. They change no result."""

from dataclasses import dataclass

from torch import nn

from cli.shared.progress import progress
from diffusion.config import Config
from diffusion.evaluate.training_scores import ScoredCheckpoints, ValidationImages, ValidationScorer
from diffusion.model.model_file import Artefact
from diffusion.protocol.settings import SamplerConfig, SampleSettings
from diffusion.system.errors import Interrupted
from diffusion.system.signals import StopRequest
from tracking.spool.spool_writer import Spool

PREFIX = "validation"  # of metric names in MLflow


def scored_images(config: Config) -> ValidationImages:
    """Return the images to score: `train.eval_images` by DDIM (η = 0) in `train.eval_steps` steps."""
    shared = config.sample.model_dump(include=set(SamplerConfig.model_fields))
    steps = min(config.train.eval_steps, config.process.timesteps)
    settings = SampleSettings(**shared, steps=steps, eta=0.0)
    return ValidationImages(settings, config.train.eval_images, config.sample.batch_size)


@dataclass(frozen=True)
class Validation:
    """The scores of one training at every `train.eval_every` steps."""

    artefact: Artefact
    scorer: ValidationScorer
    checkpoints: ScoredCheckpoints
    spool: Spool
    stop: StopRequest

    def is_scored(self, step: int) -> bool:
        """Return whether the weights after `step` steps are scored."""
        return step in self.checkpoints.scores()

    def evaluate(self, step: int, ema: nn.Module) -> None:
        """Score the EMA. A stop interrupts it, and the resumed training repeats it."""

        def watch(done: int, total: int) -> None:
            self.stop.raise_if_set()
            show(done, total)

        try:
            with progress(f"scoring step {step:,}") as show:
                scores = self.scorer.scores(ema, self.artefact, watch)
        except Interrupted:
            return
        path, gone = self.checkpoints.add(step, scores, ema, self.artefact)
        self.spool.checkpoint(step, path, {f"{PREFIX}/{name}": value for name, value in scores.items()})
        for old in gone:
            self.spool.dropped(old)
