"""The further networks of sampling: a guide, a classifier and a base, and what must fit the model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from diffusion.images.image_size import format_size, height_and_width
from diffusion.layout import HELD_OUT
from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.low_res import RealImages, open_real_images
from diffusion.system.errors import UsageError

if TYPE_CHECKING:  # images do not depend on the format of model files
    from diffusion.model.model_file import LoadedModel, ModelDescription
    from diffusion.model.network_registry import NetworkSpec


class Guides(NamedTuple):
    """What a model is sampled with: the `model` of autoguidance, a `classifier`, and what it enlarges.

    It enlarges the images that a `base` model makes, or `real` ones. `role` is what messages call the sampled
    model.
    """

    model: "LoadedModel | None" = None
    classifier: "LoadedModel | None" = None
    base: "LoadedModel | None" = None
    real: RealImages | None = None
    role: str = "model"

    def networks(self, loaded: "LoadedModel") -> dict[str, torch.nn.Module]:
        """Return all networks by their names in messages; `loaded` is the guided model."""
        parts = {self.role: loaded, "guide": self.model, "classifier": self.classifier}
        return {name: part.network for name, part in parts.items() if part is not None}

    def labelled(self, loaded: "LoadedModel") -> "ModelDescription":
        """Return what the labels are of: the model, or the base or classifier of a model without classes."""
        others = (one.artefact for one in (self.base, self.classifier) if one is not None)
        return labelled_model([loaded.artefact, *others])


def held_out(network: "NetworkSpec") -> Guides:
    """Return the held-out images if the network enlarges images, else no guides."""
    return Guides(real=None if network.low_res is None else open_real_images(HELD_OUT))


def labelled_model(models: "Sequence[ModelDescription]") -> "ModelDescription":
    """Return the first one with classes, or the first one without any."""
    return next((one for one in models if one.network.num_classes), models[0])


NO_GUIDES = Guides()
OF_BASE = Guides(role="base")


def check_guides(artefact: "ModelDescription", settings: SampleSettings, guides: Guides) -> None:
    """Raise UsageError if a network is missing that the settings name, or a base does not fit the model."""
    if settings.needs_guide and guides.model is None:
        raise UsageError(f"guidance_rule {settings.rule} needs the model of guide {settings.guide}")
    if settings.has_classifier and guides.classifier is None:
        raise UsageError(f"classifier_scale needs the network of classifier {settings.classifier}")
    if settings.base is not None and guides.base is None:
        raise UsageError(f"the cascade needs the model of base {settings.base}")
    if settings.base is not None and guides.base is not None:
        classifier = guides.classifier if settings.has_classifier else None
        check_base(artefact, guides.base.artefact, classifier and classifier.artefact)


def check_served_guide(settings: SampleSettings, guide: str | None, model: str) -> None:
    """Raise UsageError if the settings need another guide than the only one that a server has loaded."""
    if settings.needs_guide and settings.guide != guide:
        known = "no guide" if guide is None else f"the guide {guide}"
        raise UsageError(f"{model} is served with {known}, not with {settings.guide}")


def check_fit(artefact: "ModelDescription", other: "ModelDescription", name: str) -> None:
    """Raise UsageError unless a guide or classifier fits the model's images, noise and, if any, classes."""
    ours, theirs = artefact.network, other.network
    if ours.shape != theirs.shape:
        raise UsageError(
            f"the {name} takes {format_size(theirs.pixel_shape)} images, "
            f"the model makes {format_size(ours.pixel_shape)}"
        )
    grids = [build_process(one.process).probe_grid() for one in (artefact, other)]
    tables = ([grid.times, grid.alpha, grid.sigma] for grid in grids)
    if not all(torch.equal(a, b) for a, b in zip(*tables, strict=True)):
        raise UsageError(
            f"the {name} was trained with the noise of {_describe_noise(other.process)}, "
            f"the model with that of {_describe_noise(artefact.process)}"
        )
    if name == "guide" and (ours.low_res, ours.cond_noise) != (theirs.low_res, theirs.cond_noise):
        raise UsageError("the guide takes other low-resolution images (low_res, cond_noise) than the model")
    if name == "guide" and theirs.num_classes and not ours.num_classes:
        raise UsageError("the guide needs classes, and the model has none")
    if _has_other_classes(artefact, other):
        raise UsageError(f"the {name} was trained on other classes than the model")


def check_base(
    artefact: "ModelDescription", base: "ModelDescription", classifier: "ModelDescription | None" = None
) -> None:
    """Raise UsageError unless the images of a base model are those that the model enlarges.

    All three have the same classes, as far as they have any.
    """
    ours, theirs = artefact.network, base.network
    if ours.low_res is None:
        raise UsageError(
            "a base makes images to enlarge, and the model enlarges none: leave it out (sample.base, --base)"
        )
    if (*height_and_width(ours.low_res), ours.in_channels) != theirs.pixel_shape:
        wanted = format_size((*height_and_width(ours.low_res), ours.in_channels))
        found = f"the base makes {format_size(theirs.pixel_shape)} images"
        raise UsageError(f"{found}, the model enlarges {wanted}")
    if theirs.low_res is not None:
        raise UsageError("the base enlarges images itself: give a model that makes images from noise")
    for name, other in (("model", artefact), ("classifier", classifier)):
        if other is not None and _has_other_classes(base, other):
            raise UsageError(f"the base was trained on other classes than the {name}")


def _has_other_classes(one: "ModelDescription", other: "ModelDescription") -> bool:
    both = one.network.num_classes and other.network.num_classes
    return bool(both) and one.data.classes != other.data.classes


def _describe_noise(process: ProcessConfig) -> str:
    """Return the schedule with its own options."""
    common = {*ProcessConfig.model_fields, "variance"}
    own = [name for name in type(process).model_fields if name not in common]
    return f"{process.schedule} ({', '.join(f'{name} {getattr(process, name)}' for name in own)})"
