"""The code that determines images: what is imported, and the entries that settings and model files name."""

from typing import TYPE_CHECKING

from diffusion.code_digest import ModuleDigests, module_digests
from diffusion.model.network_registry import MODELS
from diffusion.process.parameterization import PREDICTIONS
from diffusion.process.process_registry import PROCESSES
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import SPACINGS

if TYPE_CHECKING:
    from diffusion.model.model_file import ModelDescription

CHANGES_RESULTS = False  # diffusion/code_digest.py


def sampling_code(
    settings: SampleSettings,
    model: "ModelDescription",
    guide: "ModelDescription | None" = None,
    classifier: "ModelDescription | None" = None,
) -> ModuleDigests:
    """Return the modules that determine a model's images with these settings."""
    models = [one for one in (model, guide) if one is not None]
    processes = [one.process for one in (model, guide, classifier) if one is not None]
    entries = [
        *(PROCESSES.module(process.schedule) for process in processes),
        *(PREDICTIONS.module(process.prediction) for process in processes),
        *(MODELS.module(one.network.name) for one in models),
        SAMPLERS.module(settings.sampler),
        SPACINGS.module(settings.spacing),
        GUIDANCE_RULES.module(settings.rule),
        *(["diffusion.model.classifier"] if classifier is not None else []),
    ]
    return module_digests("diffusion.sample.generate", "diffusion.sample.class_labels", *entries)
