"""A model as a repository on the Hugging Face hub, or as the folder of it."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

from cli.actions.model_choice import (
    chosen_settings,
    given_options,
    selected_files,
    selected_model,
    selected_scores,
)
from cli.commands.models import PublishHub
from cli.shared.console import progress
from cli.shared.options import sample_flags
from diffusion.choice.selection import model_scores, usual_settings
from diffusion.interop.hub_folder import CardInputs, write_hub_folder
from diffusion.layout import MODEL
from diffusion.model.model_file import load_model
from diffusion.protocol.base_model import BaseConfig
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.sample.generate import check_settings
from diffusion.system.devices import default_device
from diffusion.system.errors import DiffctlWarning, UsageError
from diffusion.system.files import atomic_folder
from diffusion.system.output_paths import check_output_folder


def publish_to_hub(options: PublishHub) -> None:
    if options.dry_run is not None:
        check_output_folder(options.dry_run, "--dry-run")
    model = selected_model(options)
    loaded = load_model(model, default_device())
    scores = _own_scores(options, loaded.artefact.model_sha256)
    usual = usual_settings(loaded.artefact.process.schedule, scores, given_options(options.sampling))
    settings = chosen_settings(options.sampling, usual)
    check_settings(loaded.artefact, settings)
    files = selected_files(options, settings, model, options.sampling)
    name = options.repo.rpartition("/")[2]
    guides: dict[str, Any] = {kind: f"{name}/{kind}{MODEL.suffix}" for kind in files.networks()}
    if settings.base is not None:
        guides["base"] = BaseConfig(file=guides["base"], sampling=settings.base.sampling)
    card = CardInputs(
        repo=options.repo,
        artefact=loaded.artefact,
        scores=scores,
        settings=settings,
        options=sample_flags(settings, guides),
        license=options.license,
        datasets=tuple(options.dataset or ()),
    )
    repository = None
    if options.dry_run is None:
        from cli.actions.models.hub_upload import HubRepository  # of an extra

        repository = HubRepository(options.repo, private=options.private)
    with tempfile.TemporaryDirectory() as scratch:
        out = options.dry_run or Path(scratch) / "repository"
        with atomic_folder(out.resolve()) as made, progress("sample") as show:
            without = write_hub_folder(made, card, loaded, files, show)
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


def _own_scores(options: PublishHub, sha256: str) -> ScoresDocument | None:
    """Return the scores of the model; None without any, with a warning."""
    try:
        own, why = model_scores(selected_scores(options), sha256), "the scores are of another model"
    except UsageError as error:  # it was not evaluated
        own, why = None, str(error)
    if own is None:
        warnings.warn(f"published without scores: {why}", DiffctlWarning, stacklevel=2)
    return own
