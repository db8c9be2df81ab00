"""The images that are scored during training, by the section `sample`."""

from typing import TYPE_CHECKING

from diffusion.evaluate.training_scores import ValidationImages
from diffusion.protocol.guidance_rules import GUIDANCE_RULES, implied_rule
from diffusion.protocol.settings import CommonSettings, SampleSettings, default_spacing
from diffusion.protocol.spacing import SPACINGS
from diffusion.system.section import validate

if TYPE_CHECKING:
    from diffusion.config import Config


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
        shared |= {"spacing": default_spacing(config.process.schedule), "spacing_options": {}}
    values = {**shared, "steps": min(train.eval_steps, config.process.max_steps), "eta": 0.0}
    settings = validate(SampleSettings, values, "the scores of train.eval_every")
    return ValidationImages(settings, train.eval_images, sample.batch_size)
