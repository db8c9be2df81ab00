"""Base models of cascades that are in MLflow."""

from diffusion.protocol.base_model import BaseConfig
from diffusion.sample.base_file import base_file, pin_base
from diffusion.system.errors import TemporaryError
from tracking.registry.registered_models import fetch_version_files
from tracking.runs.scored_runs import fetch_model


def fetch_base(base: BaseConfig | None) -> None:
    """Fetch the base model of a cascade that is in MLflow, and pin it until the next call.

    Without MLflow the one that was fetched last is used; UsageError without any.
    """
    if base is None or base.file is not None:
        return
    try:
        if base.run_id is not None:
            pin_base(base, fetch_model(base.run_id))
        elif base.champion is not None:
            pin_base(base, fetch_version_files(base.champion).files.model)
    except TemporaryError:
        base_file(base)
