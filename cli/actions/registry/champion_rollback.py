"""The rollback to an earlier champion."""

from cli.commands.registry import Rollback
from diffusion.protocol.resolution import best_settings
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.sample.conditions import image_condition
from diffusion.sample.generate import generate
from diffusion.sample.network_files import NetworkFiles, Recipe, real_images
from diffusion.system.devices import default_device
from tracking.registry.promotion import check_note, roll_back
from tracking.registry.registered_models import project_model


def roll_back_champion(options: Rollback) -> None:
    history = roll_back(project_model(), options.to, check_note(options.reason), _sample_one)
    event = history.events[-1]
    stays = f"version {event.before} is promoted again only by `diffctl promote --force`"
    text = f"{history.name}: champion is version {event.after} again; {stays}"
    options.answer(event.model_dump(mode="json"), text)


def _sample_one(files: NetworkFiles, scores: ScoresDocument) -> None:
    """Sample image 0 with the settings of the best cell; errors are raised."""
    device, settings = default_device(), best_settings(scores)
    files = files._replace(real=real_images(settings, files.model))  # they are not registered
    loaded, guides = Recipe.read(settings, files).load(device)
    condition = image_condition(loaded, settings, [0], guides)
    generate(loaded, settings, [0], condition, device, guides=guides)
