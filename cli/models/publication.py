"""A model as a repository on the Hugging Face hub, or as the folder of it."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

from cli.models.model_choice import given_options, selected_source
from cli.models.model_commands import PublishHub
from cli.shared.console import progress
from cli.shared.options import sample_flags
from diffusion.interop.hub_folder import CardInputs, write_hub_folder
from diffusion.layout import MODEL
from diffusion.protocol.base_model import BaseConfig
from diffusion.protocol.settings import SampleSettings, completed
from diffusion.system.devices import default_device
from diffusion.system.errors import DiffctlWarning, UsageError
from diffusion.system.files import atomic_folder
from diffusion.system.output_paths import check_output_folder
from tracking.recipes import Source, find_settings, recipe_of


def publish_to_hub(options: PublishHub) -> None:
    if options.dry_run is not None:
        check_output_folder(options.dry_run, "--dry-run")
    source, given = selected_source(options), given_options(options.sampling)
    _warn_without_scores(source)
    settings = find_settings(source, given).settings
    recipe = recipe_of(source, settings, given)
    name = options.repo.rpartition("/")[2]
    guides: dict[str, Any] = {kind: f"{name}/{kind}{MODEL.suffix}" for kind in recipe.files.networks()}
    if settings.base is not None:
        guides["base"] = BaseConfig(file=guides["base"], sampling=settings.base.sampling)
    card = CardInputs(
        repo=options.repo,
        artefact=source.artefact,
        scores=source.scores,
        settings=settings,
        options=sample_flags(settings, completed(SampleSettings(), source.schedule), guides),
        license=options.license,
        datasets=tuple(options.dataset or ()),
    )
    repository = None
    if options.dry_run is None:
        from cli.models.hub_upload import HubRepository  # of an extra

        repository = HubRepository(options.repo, private=options.private)
    with tempfile.TemporaryDirectory() as scratch:
        out = options.dry_run or Path(scratch) / "repository"
        with atomic_folder(out.resolve()) as made, progress("sample") as show:
            without = write_hub_folder(made, card, recipe, default_device(), show)
        if without:
            warnings.warn(f"published without a diffusers pipeline: {without}", DiffctlWarning, stacklevel=1)
        names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
        found = {"repo": options.repo, "files": names}
        if repository is None:
            options.answer({**found, "out": out}, f"{len(names)} files: {out}, nothing was uploaded")
            return
        done = repository.upload(out)
    text = f"{done.url}: commit {done.commit[:9]}" if done.is_new else f"{done.url} has this content already"
    options.answer({**found, **done._asdict()}, text)


def _warn_without_scores(source: Source) -> None:
    try:
        _ = source.required_scores
    except UsageError as error:  # it was not evaluated
        warnings.warn(f"published without scores: {error}", DiffctlWarning, stacklevel=3)
