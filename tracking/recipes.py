"""What samples images: a model from a file, a run or a version, with settings and further networks.

A source is found once; its model, its scores and the networks of its best cell belong together.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusion.choice.selection import best_card, model_scores
from diffusion.layout import SCORES
from diffusion.model.model_file import Artefact, read_artefact
from diffusion.protocol.option_tables import refuse_idle
from diffusion.protocol.resolution import ResolvedSettings, best_settings, resolve_settings
from diffusion.protocol.scores_document import ScoresDocument, read_scores
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.network_files import Recipe, network_files, not_of_the_scores
from diffusion.system.errors import UsageError
from tracking.registry.registered_models import VersionFiles, find_version_files
from tracking.runs.base_models import fetch_base, fetch_scored_base
from tracking.runs.run_lookup import find_run
from tracking.runs.scored_runs import fetch_model, fetch_scores


@dataclass(frozen=True)
class Source:
    """A model file with what is known of it.

    `name` is that of the file, the run or the registered model. `run_id` is the training's run in MLflow,
    `version` the number of a registered version. `read_scores` returns the scores of its sweep; UsageError
    if it was not evaluated.
    """

    name: str
    model: Path
    read_scores: Callable[[], ScoresDocument]
    run_id: str | None = None
    version: VersionFiles | None = None

    @cached_property
    def artefact(self) -> Artefact:
        """The metadata of the model."""
        return read_artefact(self.model)

    @cached_property
    def has_scores(self) -> bool:
        """Whether there are scores, of this model or another one."""
        try:
            self.read_scores()
        except UsageError:
            return False
        return True

    @property
    def schedule(self) -> str:
        """The name of the model's process."""
        return self.artefact.process.schedule

    @cached_property
    def required_scores(self) -> ScoresDocument:
        """The scores of this model; UsageError without any."""
        own = model_scores(self.read_scores(), self.artefact.model_sha256)
        if own is None:
            raise UsageError(
                f"the scores are of another model than {self.model}: `diffctl run` makes new ones"
            )
        return own

    @cached_property
    def scores(self) -> ScoresDocument | None:
        """The scores of this model; None if it was not evaluated."""
        try:
            return self.required_scores
        except UsageError:
            return None

    @cached_property
    def best(self) -> SampleSettings | None:
        """The settings of the best cell."""
        return None if self.scores is None else best_settings(self.scores)

    @cached_property
    def networks(self) -> dict[str, Path]:
        """The guide, classifier and base of the best cell, by kind, that a registered version carries."""
        version = self.version
        if version is None and self.run_id is not None and self.scores is not None:
            version = find_version_files(best_card(self.scores))
        files = {} if version is None else version.files.networks()
        return {kind: file for kind, file in files.items() if kind != "model"}

    def named_networks(self) -> dict[str, Path]:
        """Return the networks of the version by their names in the settings of the best cell."""
        return {str(getattr(self.best, kind)): file for kind, file in self.networks.items()}


def source_of_file(path: Path) -> Source:
    """Return a model file, whose scores are in metrics/scores.json next to its folder."""
    scores = path.absolute().parent.parent / SCORES
    return Source(path.name, path, lambda: read_scores(scores))


def source_of_run(name: str) -> Source:
    """Return the model of a run in MLflow, by its id or name; it is downloaded if needed."""
    run = find_run(name)
    run_id = str(run.info.run_id)
    return Source(str(run.info.run_name), fetch_model(run_id), lambda: fetch_scores(run), run_id)


def source_of_version(name: str, found: VersionFiles) -> Source:
    """Return a version of the registered model of this name."""
    return Source(name, found.files.model, lambda: found.scores, found.run_id, found)


def find_settings(
    source: Source, given: Mapping[str, Any], budget: int | None = None, *, best_cell: bool = True
) -> ResolvedSettings:
    """Return the settings of images of a source, as `resolve_settings`; UsageError for idle options."""
    wants_scores = best_cell or given.get("spacing") is not None
    scores = source.required_scores if budget is not None else source.scores if wants_scores else None
    found = resolve_settings(
        source.schedule, given, scores, budget=budget, best_cell=best_cell, read_files=True
    )
    refuse_idle(given, found.settings)
    return found


def recipe_of(
    source: Source, settings: SampleSettings, given: Mapping[str, Any] = {}, *, with_images: bool = True
) -> Recipe:
    """Return what samples these settings of a source, with held-out images to enlarge if it has no base.

    A network that the best cell of its scores names too is the one of these scores, which a registered
    version carries, unless it is among the `given` options. Others are files of the project, and a base is
    fetched. UsageError if one is missing, does not fit, or is not the one of the scores.
    """
    used = {"guide": settings.needs_guide, "classifier": settings.has_classifier}
    used["base"] = settings.base is not None and given.get("base") is None
    wanted = [kind for kind, is_used in used.items() if is_used]
    best = source.best if wanted else None
    same = [kind for kind in wanted if best and getattr(best, kind) == getattr(settings, kind)]
    carried = {kind: source.networks[kind] for kind in same if kind in source.networks}
    card = best_card(source.scores) if source.scores is not None and same else {}
    if settings.base is not None and "base" not in carried:
        own = "base" in same
        carried["base"] = fetch_scored_base(settings.base, card) if own else fetch_base(settings.base)
    others = settings.model_copy(update=dict.fromkeys(carried))
    files = network_files(others, source.model)._replace(**carried)
    recipe = Recipe.read(settings, files if with_images else files._replace(real=None))
    kept = [kind for kind in same if given.get(kind) is None]
    if wrong := recipe.networks.find_difference(card, kept):
        raise not_of_the_scores(wrong, getattr(files, wrong))
    return recipe
