"""What a cell's images depend on: the sampling part of its protocol card, and the code that samples them."""

from pathlib import Path
from typing import Any

from diffusion.code_digest import Chosen, ModuleDigests, code_digest, code_of, plugin_card, torch_version
from diffusion.layout import CELL_RUNS
from diffusion.model.counted_passes import forward_flops
from diffusion.model.model_file import ModelDescription
from diffusion.model.network_registry import MODELS
from diffusion.process.parameterization import PREDICTIONS
from diffusion.process.process_registry import PROCESSES
from diffusion.protocol.grid import settings_card
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.option_tables import SAMPLING_OPTIONS
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings, base_settings
from diffusion.protocol.spacing import SPACINGS
from diffusion.sample.network_files import NetworkArtefacts
from diffusion.sample.sampling_steps import count_nfe
from diffusion.system.section import fingerprint


def sampling_code(settings: SampleSettings, networks: NetworkArtefacts) -> ModuleDigests:
    """Return the digests of the code that determines a model's images with these settings."""
    models = [one for one in (networks.model, networks.guide, networks.base) if one is not None]
    processes = [one.process for one in (*models, networks.classifier) if one is not None]
    entries: list[Chosen] = [
        *((PROCESSES, process.schedule) for process in processes),
        *((PREDICTIONS, process.prediction) for process in processes),
        *((MODELS, one.network.name) for one in models),
    ]
    of_base = None if networks.base is None else base_settings(settings, networks.base.process.schedule)
    for one in (settings, of_base):
        if one is not None:
            entries += [(SAMPLERS, one.sampler), (SPACINGS, one.spacing), (GUIDANCE_RULES, one.rule)]
    roots = [] if networks.classifier is None else ["diffusion.model.classifier"]
    return code_of(["diffusion.sample.generate", *roots], entries)


def sampling_card(settings: SampleSettings, networks: NetworkArtefacts) -> dict[str, Any]:
    """Return the sampling part of the protocol card, without the number of images: a flat JSON dict."""
    artefact = networks.model
    return {
        "model_sha256": artefact.model_sha256,
        "ema": artefact.ema_sigma_rel or True,
        "precision": artefact.precision,
        **settings_card(settings, **networks.digests),
        **_base_spacing(settings, networks.base),
        **nfe_fields(settings, artefact, networks.base),
        "sampling_torch": torch_version(),
        **plugin_card("sampling_plugins", sampling_code(settings, networks)),
    }


def _base_spacing(settings: SampleSettings, base: ModelDescription | None) -> dict[str, str]:
    """Return the spacing of a base if its process chose it, and not as a discrete process does."""
    own = None if base is None else base_settings(settings, base.process.schedule)
    if own is None or settings.base is None or "spacing" in settings.base.sampling:
        return {}
    return {} if own.spacing == SAMPLING_OPTIONS["spacing"].default else {"base_spacing": own.spacing}


def nfe_fields(
    settings: SampleSettings, model: ModelDescription, base: ModelDescription | None
) -> dict[str, float]:
    """Return the NFE of an image: of both models of a cascade, of its base, and by weight.

    `weighted_nfe` counts a forward pass of the base by its share of the FLOPs of one of the model.
    """
    nfe = count_nfe(settings, model.process)
    own = None if base is None else base_settings(settings, base.process.schedule)
    if base is None or own is None:
        return {"nfe": nfe}
    of_base = count_nfe(own, base.process)
    share = forward_flops(base.network) / forward_flops(model.network)
    return {"nfe": nfe + of_base, "base_nfe": of_base, "weighted_nfe": round(nfe + share * of_base, 2)}


def shards_folder(settings: SampleSettings, networks: NetworkArtefacts) -> Path:
    """Return the folder of a cell's finished shards, named by its card and the sampling code.

    The card's version is raised manually: it stays the same if other code samples the same images.
    """
    code = code_digest(sampling_code(settings, networks))
    made_by = {"card": sampling_card(settings, networks), "code": code}
    return cells_folder(networks.model.model_sha256) / fingerprint(made_by)


def cells_folder(model_sha256: str) -> Path:
    """Return the folder of a model's cells; each cell has a folder named by its card and code."""
    return CELL_RUNS / model_sha256[:16]
