"""A project with a search over two seeds."""

from pathlib import Path

import pytest

from diffusion.search.search_config import SearchConfig
from diffusion.search.study import SearchStudy
from diffusion.trials.trial_runs import Trial
from tests.conftest import write_params
from tests.helpers.mlflow_server import empty_database
from tests.helpers.prepared import copy_reference

SEARCH = {"fields": {"train.seed": [3, 4]}, "method": "grid"}
LONG = {"steps": 40, "log_every": 1, "save_every": 4, "preview_every": 40}
SWEEP = {"steps": [2], "eta": [0.0]}


@pytest.fixture
def searching(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with data and reference, and a search over two seeds."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_database(project / "mlflow.db"))
    write_params(project, train=LONG, sweep=SWEEP, search=SEARCH)
    copy_reference(project)
    return project


def trials(folder: Path) -> list[Trial]:
    """Return the trials of the search."""
    return SearchStudy(folder / "runs/search/search", SearchConfig(**SEARCH)).trials()
