"""What prefect.yaml and deploy/automations.yaml say, brought to a Prefect server, as often as wanted."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from diffusion.system.errors import DiffctlError, DiffctlWarning, TemporaryError, UsageError
from flows.prefect_server.local_servers import PREFECT
from flows.prefect_server.prefect_settings import LEASES
from flows.prefect_server.temporary_server import auth_error, is_healthy, quiet_client
from flows.unknown_keys import Template, others, process_template, unknown_keys
from flows.versions import older
from tracking.connectivity import redact_uri

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

FILE = Path("prefect.yaml")
AUTOMATIONS = Path("deploy/automations.yaml")
IN_MEMORY = "prefect.server.concurrency.lease_storage.memory"
DEPLOY_SECONDS = 120
POOL_DESCRIPTION = "diffctl's scheduled runs, each a process in the clone that DIFFCTL_CLONE names"


@dataclass(frozen=True)
class Deployment:
    """A deployment as the server has it: its flow's and its own name, and the schema of its parameters."""

    name: str
    description: str
    schema: dict[str, Any]
    parameters: dict[str, Any]


def deploy_all(url: str, root: Path = Path()) -> list[Deployment]:
    """Make the work pools, deployments and automations of the project in `root` on the server at `url`.

    What is there is brought up to date. UsageError for files with keys that Prefect would ignore,
    or a server that wants another password; TemporaryError when it does not answer; DiffctlError when it
    refuses. A DiffctlWarning where it keeps its leases in memory, and where it is older than Prefect here.
    """
    if not is_healthy(url, timeout=10):
        raise TemporaryError(f"no Prefect server answers at {redact_uri(url)}: `diffctl up` starts one")
    if sentence := older(PREFECT, url):
        warnings.warn(sentence, DiffctlWarning, stacklevel=2)
    with quiet_client(url):
        import httpx
        from prefect.client.orchestration import get_client
        from prefect.exceptions import PrefectException

        try:
            with get_client(sync_client=True) as client:
                plan = read_plan(root / FILE, lambda pool: _template(client, pool))
                automations = read_automations(root / AUTOMATIONS)
                _warn_of_leases(client)
                for pool in sorted({entry["work_pool"]["name"] for entry in plan["deployments"]}):
                    _ensure_pool(client, pool)
                _deploy_all(root)
                for automation in automations:
                    _ensure_automation(client, automation)
                return [_deployed(client, entry) for entry in plan["deployments"]]
        except (
            httpx.HTTPError,
            PrefectException,
            RuntimeError,
        ) as error:  # the last: of another major version
            if kept_out := auth_error(url, error):
                raise kept_out from None
            raise DiffctlError(
                f"Prefect at {redact_uri(url)} refuses: {' '.join(str(error).split())}"
            ) from None


def read_plan(path: Path, template_of: Callable[[str], Template] = process_template) -> dict[str, Any]:
    """prefect.yaml; UsageError where it is none, or has a key or parameter that Prefect would ignore.

    `template_of` gives the job template of a work pool, which names the job variables that there are.
    """
    from prefect.cli.deploy._models import PrefectYamlModel
    from pydantic import ValidationError

    from diffusion.system.section import explain

    plan = _read(path)
    if unknown := list(unknown_keys(plan, template_of)):
        raise UsageError(f"{path}: Prefect knows nothing of {', '.join(unknown)}")
    try:
        deployments = PrefectYamlModel.model_validate(plan).deployments
    except ValidationError as error:
        raise UsageError(explain(error, str(path), PrefectYamlModel)) from None
    if not deployments:
        raise UsageError(f"{path} has no deployments")
    for one in deployments:
        if not (one.name and one.work_pool and one.work_pool.name):
            raise UsageError(f"{path}: a deployment needs a name, and a work_pool with one")
    return plan


def read_automations(path: Path) -> list[dict[str, Any]]:
    """The automations of the file; UsageError where it has none, or keys that mean nothing."""
    from prefect.events.schemas.automations import AutomationCore, EventTrigger
    from pydantic import ValidationError

    from diffusion.system.section import explain

    found = _read(path).get("automations")
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UsageError(f"{path} has no list of automations")
    for one in found:
        try:
            AutomationCore.model_validate(one)
        except ValidationError as error:
            raise UsageError(explain(error, f"{path}: {one.get('name')}", AutomationCore)) from None
        trigger = one["trigger"]
        unknown = [*others(one, AutomationCore), *others(trigger, EventTrigger, "trigger.")]
        if unknown:
            raise UsageError(f"{path}: Prefect knows nothing of {', '.join(unknown)}")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no {path}: run this in the project's folder") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} says nothing")
    return values


def _warn_of_leases(client: "SyncPrefectClient") -> None:
    settings = client.request("GET", "/admin/settings").json()
    storage = settings.get("server", {}).get("concurrency", {}).get("lease_storage", IN_MEMORY)
    if storage == IN_MEMORY:
        warnings.warn(
            "this Prefect server keeps its leases in memory: after a reboot a slot stays held, and no later "
            f"run begins; start it with PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE={LEASES}, "
            "as `diffctl up` does",
            DiffctlWarning,
            stacklevel=2,
        )


def _template(client: "SyncPrefectClient", pool: str) -> Template:
    """The job template of a pool that is there, of whatever type; else of the one that is made."""
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_work_pool(pool).base_job_template
    except ObjectNotFound:
        return process_template(pool)


def _ensure_pool(client: "SyncPrefectClient", name: str) -> None:
    """Make a pool of processes unless there is one, of whatever type."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        template = process_template(name)
        client.create_work_pool(
            WorkPoolCreate(
                name=name, type="process", description=POOL_DESCRIPTION, base_job_template=template
            )
        )


def _deploy_all(root: Path) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=DEPLOY_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise TemporaryError(f"`prefect deploy --all` did not end within {DEPLOY_SECONDS} s") from None
    if done.returncode:
        said = " ".join((done.stderr + done.stdout).split())[-500:]
        raise DiffctlError(f"`prefect deploy --all` failed: {said}")


def _ensure_automation(client: "SyncPrefectClient", values: dict[str, Any]) -> None:
    from prefect.events.schemas.automations import AutomationCore

    automation = AutomationCore.model_validate(values)
    found = client.read_automations_by_name(automation.name)
    if found:
        client.update_automation(found[0].id, automation)
    else:
        client.create_automation(automation)


def _deployed(client: "SyncPrefectClient", entry: Mapping[str, Any]) -> Deployment:
    from prefect.utilities.importtools import import_object

    name = f"{import_object(str(entry['entrypoint'])).name}/{entry['name']}"
    found = client.read_deployment_by_name(name)
    return Deployment(
        name, found.description or "", dict(found.parameter_openapi_schema or {}), dict(found.parameters)
    )
