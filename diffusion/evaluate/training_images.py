"""The images that are scored during training, by the section `sample`."""

from diffusion.evaluate.training_scores import ValidationImages
from diffusion.protocol.guidance_rules import GUIDANCE_RULES, implied_rule
from diffusion.protocol.sample_sections import SampleConfig
from diffusion.protocol.settings import CommonSettings, SampleSettings
from diffusion.protocol.spacing import SPACINGS
from diffusion.system.section import validate


def scored_images(sample: SampleConfig, count: int, steps: int, max_steps: int) -> ValidationImages:
    """Return the `count` images to score by the section `sample`, with η = 0 in at most `max_steps` steps.

    No other network is used: no classifier, and no guidance if its rule needs a guide. Learned times, which
    are of a trained model, are replaced by uniform ones. UsageError for settings that do not fit.
    """
    shared = sample.model_dump(include=set(CommonSettings.model_fields))
    shared["classifier"] = shared["base"] = None
    if GUIDANCE_RULES[shared["guidance_rule"] or implied_rule(shared["guide"])].needs_guide:
        shared["guidance"] = 0.0
    if SPACINGS[shared["spacing"]].has_levels:
        shared |= {"spacing": "uniform", "spacing_options": {}}
    values = {**shared, "steps": min(steps, max_steps), "eta": 0.0}
    settings = validate(SampleSettings, values, "the scores of train.eval_every")
    return ValidationImages(settings, count, sample.batch_size)
