"""What decides a trial's scores next to its settings: images, networks, code and versions, by content.

A search or a verdict stores the inputs that its trials have at its start. A trial with other ones is refused,
before its training and after its scores.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion.code_digest import (
    ModuleDigests,
    code_digest,
    module_digests,
    module_tree,
    modules_of,
    syntax_digest,
    torch_version,
)
from diffusion.evaluate import sweep_scores
from diffusion.evaluate.evaluate_config import EvaluateConfig, Space
from diffusion.evaluate.features.reference_features import extraction_code
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import HELD_OUT, MODEL, PREPARED
from diffusion.protocol.card import NETWORKS
from diffusion.protocol.extractors import extractor_spec
from diffusion.protocol.grid import SAMPLING_VERSION, Cell, cell_settings
from diffusion.protocol.settings import CommonSettings, SampleSettings
from diffusion.sample.network_files import CellFiles, NetworkArtefacts, NetworkFiles
from diffusion.sample.sampling_card import sampling_code
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.train import validation_loss
from diffusion.train.plan import DenoiserPlan, plan_artefact

Inputs = dict[str, Any]
"""Digests and versions by names that a message can have. A network has the name of its role in a card."""


def inputs_of_scores(
    sample: CommonSettings,
    evaluate: EvaluateConfig,
    plan: DenoiserPlan,
    cells: Iterable[Cell],
    base: Path | None = None,
) -> Inputs:
    """Return the inputs of a training and of the scores of these cells; `base` is the file of its base."""
    model, found = plan_artefact(plan), []
    for cell in cells:
        settings = cell_settings(sample, cell)
        guide = Path(settings.guide) if settings.needs_guide and settings.guide else None
        classifier = Path(settings.classifier) if settings.has_classifier and settings.classifier else None
        found.append((settings, NetworkFiles(MODEL, guide, classifier, base).read(model)))
    return {"code of the training": plan.code[-1].digest, **_of_scores(evaluate, found)}


def inputs_of_samples(
    sample: CommonSettings, evaluate: EvaluateConfig, cell: Cell, base: Path | None = None
) -> Inputs:
    """Return the inputs of the scores of a cell of the project's model, which is one of them."""
    if not MODEL.is_file():
        raise UsageError(f"a change of the sampling is judged with {MODEL}, which is missing: `diffctl run`")
    networks = CellFiles(MODEL, sample, [cell], base).of(cell).read()
    found = _of_scores(evaluate, [(cell_settings(sample, cell), networks)])
    return {"model": networks.model.model_sha256, **found}


def inputs_of_loss(plan: DenoiserPlan) -> Inputs:
    """Return the inputs of a training and of its validation loss.

    The module of the loss changes no training, so that other digests leave it out.
    """
    module = validation_loss.__name__
    tree = module_tree(module)
    code = {**module_digests(*sorted(modules_of(tree))), module: syntax_digest(tree)}
    return {
        **_of_project(),
        "code of the training": plan.code[-1].digest,
        "code of the validation loss": code_digest(code),
        "train.val_images": plan.train.val_images,
    }


def _of_project() -> Inputs:
    stores = PREPARED / "train", HELD_OUT
    images = {str(folder): open_store(folder, PreparedMeta).digest for folder in stores}
    return {**images, "torch": torch_version()}


def _of_scores(evaluate: EvaluateConfig, found: Sequence[tuple[SampleSettings, NetworkArtefacts]]) -> Inputs:
    """Return the inputs of samples with these settings and networks, and of their scores."""
    code: ModuleDigests = {}
    networks: Inputs = {}
    for settings, one in found:
        code |= sampling_code(settings, one)
        networks |= {name.removesuffix("_sha256"): digest for name, digest in one.digests.items()}
    return {
        **_of_project(),
        **networks,
        "version of the sampling": SAMPLING_VERSION,
        "code of the sampling": code_digest(code),
        "code of the scores": code_digest(module_digests(sweep_scores.__name__)),
        "extractors": list(map(_extractor, evaluate.spaces)),
    }


def _extractor(space: Space) -> list[Any]:
    """Return what decides the features of images; other weights than these are refused where they load."""
    spec = extractor_spec(space.extractor)
    weights = space.weights_sha256 or spec.weights.sha256
    return [spec.name, weights, spec.evaluation, code_digest(extraction_code(spec))]


def changed_inputs(known: Sequence[Inputs], now: Sequence[Inputs]) -> list[str]:
    """Return the names of the inputs in which the first one that is not known differs from the nearest."""
    unknown = [one for one in now if one not in known] if known else []  # an older version stored none
    for new in unknown:
        return min((_differing(old, new) for old in known), key=len)
    return []


def _differing(old: Inputs, new: Inputs) -> list[str]:
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]


def refuse_other_inputs(inputs: Inputs, known: Sequence[Inputs], place: Path) -> None:
    """Raise DiffctlError if no trial in `place` had these inputs when the search or verdict began."""
    if changed := changed_inputs(known, [inputs]):
        found = f"{', '.join(changed)} changed since the search or verdict in {place} began"
        raise DiffctlError(f"{found}: restore that to resume it, or begin another one")


def refuse_other_networks(cards: Iterable[Mapping[str, Any]], inputs: Inputs) -> None:
    """Raise DiffctlError if these cards of scored cells have other networks than the inputs."""
    for card in cards:
        for name in NETWORKS:
            used = card.get(f"{name}_sha256")
            if name in inputs and used not in (None, inputs[name]):
                raise DiffctlError(
                    f"the file of the {name} was replaced meanwhile: run the same command again"
                )
