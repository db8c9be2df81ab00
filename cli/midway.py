"""Scores in the midst of a training: made, shown, logged by step, their weights kept. No result changes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cli.progress import progress

if TYPE_CHECKING:
    from diffusion.checkpoint import Artefact
    from diffusion.evaluation.midway import Checkpoints, MidwayScorer
    from diffusion.signals import StopRequest
    from diffusion.unet import UNet
    from tracking.spool import Spool

PREFIX = "midway"  # of the scores' names in MLflow


@dataclass(frozen=True)
class Midway:
    """What `train.eval_every` asks for, of one training."""

    artefact: "Artefact"
    scorer: "MidwayScorer"
    checkpoints: "Checkpoints"
    spool: "Spool"
    stop: "StopRequest"

    def knows(self, step: int) -> bool:
        """Whether the weights after `step` steps have been scored."""
        return step in self.checkpoints.scores()

    def evaluate(self, step: int, ema: "UNet") -> None:
        """Score the EMA; a request to stop cuts that short, and the training's next start makes it good."""
        from diffusion.errors import Interrupted

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
