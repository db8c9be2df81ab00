"""Addresses of pages of MLflow's UI, which shows trainings only where the address says so.

MLflow 3's UI opens in its mode for language models whatever an experiment is of; `workflowType` in the
address changes that for good.
"""

import json
from collections.abc import Sequence
from urllib.parse import quote, urlencode

LOCAL = "http://127.0.0.1:5000"  # of `diffctl ui`, unless it is given another port
MODE = {"workflowType": "machine_learning"}
VIEW = "diffctl"  # the key of the experiment's shared view: its columns and charts


def experiment_link(address: str, experiment_id: str) -> str:
    """The experiment's runs, as charts beside the table."""
    query = {**MODE, "compareRunsMode": "CHART", "viewStateShareKey": VIEW}
    return f"{_root(address)}experiments/{experiment_id}/runs?{urlencode(query)}"


def run_link(address: str, experiment_id: str, run_id: str, artifact: str = "") -> str:
    """One run, or the path of an artifact of it."""
    place = f"{run_id}/artifacts/{artifact}" if artifact else run_id
    return f"{_root(address)}experiments/{experiment_id}/runs/{place}?{urlencode(MODE)}"


def comparison_link(address: str, experiment_ids: Sequence[str], run_ids: Sequence[str]) -> str:
    """MLflow's own page that holds runs against each other: params, metrics, pictures."""
    experiments = list(dict.fromkeys(experiment_ids))
    query = {"runs": json.dumps(list(run_ids)), "experiments": json.dumps(experiments), **MODE}
    return f"{_root(address)}compare-runs?{urlencode(query)}"


def version_link(address: str, name: str, number: int) -> str:
    """A version of a registered model."""
    return f"{_root(address)}models/{quote(name, safe='')}/versions/{number}?{urlencode(MODE)}"


def _root(address: str) -> str:
    return f"{address.rstrip('/')}/#/"
