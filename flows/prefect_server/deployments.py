"""Deploy prefect.yaml and diffctl's automations to a Prefect server, and emit the project's events."""

import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from diffusion.layout import MARK, PACKAGE_DATA
from diffusion.system.errors import DiffctlError, TemporaryError, UsageError
from diffusion.system.params import read_mapping
from diffusion.system.processes import PYTHON_MODULE
from flows.prefect_server.client import all_deployments, api_client, is_healthy, quiet_client
from tracking.connectivity import redact_uri

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

FILE = Path("prefect.yaml")
AUTOMATIONS = PACKAGE_DATA / "deploy/automations.yaml"
DATA_CHANGED = "diffctl.data-changed"
OWNER = "project:"  # of the tag with the name of a deployment's project
TAG = "diffctl"  # of the deployments of all projects, for deploy/automations.yaml


def deploy_all(url: str) -> list[dict[str, Any]]:
    """Create or update the work pools, deployments and automations of the project in this folder.

    Return each deployment's name (FLOW/DEPLOYMENT), description, parameters and their JSON schema.
    Raise UsageError for an invalid file, a wrong password or deployments of another project, TemporaryError
    if the server at `url` does not answer, DiffctlError if it refuses.
    """
    _require_healthy(url)
    with api_client(url) as client:
        plan = read_plan(FILE)
        automations, own = read_automations(AUTOMATIONS), owner_tag()
        _check_owner(client, plan["deployments"], own)
        for pool in sorted({entry["work_pool"]["name"] for entry in plan["deployments"]}):
            _ensure_pool(client, pool)
        _deploy(plan, own)
        for automation in automations:
            if found := client.read_automations_by_name(automation.name):
                client.update_automation(found[0].id, automation)
            else:
                client.create_automation(automation)
        return [_read_deployment(client, entry) for entry in plan["deployments"]]


def emit_data_changed(url: str, data: str) -> None:
    """Emit the event that the data changed, unconfirmed; raise TemporaryError if Prefect is away."""
    _require_healthy(url)
    with quiet_client(url):  # sends buffered events at its end
        from prefect.events import emit_event

        resource = {"prefect.resource.id": f"diffctl.data.{data}", "prefect.resource.name": data}
        emit_event(DATA_CHANGED, resource)


def read_plan(path: Path) -> dict[str, Any]:
    """Return prefect.yaml; raise UsageError if it is invalid or has a key that Prefect would ignore."""
    from prefect.cli.deploy._models import PrefectYamlModel
    from prefect.events.schemas.deployment_triggers import DeploymentTriggerTypes

    plan = _read_yaml(path)
    fields = {key: value for key, value in plan.items() if key != "definitions"}  # YAML anchors
    deployments = _validate(PrefectYamlModel, fields, str(path)).deployments
    if not deployments:
        raise UsageError(f"{path} has no deployments")
    for one in deployments:
        if not (one.name and one.work_pool and one.work_pool.name):
            raise UsageError(f"{path}: a deployment needs a name, and a work_pool with one")
        for trigger in one.triggers or ():
            _validate(DeploymentTriggerTypes, trigger, f"{path}: {one.name}.triggers")
    return plan


def read_automations(path: Path) -> "list[AutomationCore]":
    """Return the automations of the file; raise UsageError as `read_plan`."""
    from prefect.events.schemas.automations import AutomationCore

    found: list[AutomationCore] = _validate(
        list[AutomationCore], _read_yaml(path).get("automations"), f"{path}: automations"
    )
    return found


def _validate(kind: Any, values: Any, where: str) -> Any:
    """Return the values as the type `kind` of Prefect; raise UsageError if they do not fit."""
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter(kind)
    try:
        made = adapter.validate_python(values)
    except ValidationError as error:
        raise UsageError(f"{where}: {' '.join(str(error).split())}") from None
    if ignored := list(_ignored_keys(values, adapter.dump_python(made, by_alias=True, exclude_unset=True))):
        raise UsageError(f"{where}: unknown keys {', '.join(ignored)}")
    return made


def _ignored_keys(given: Any, used: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of `given` that Prefect dropped: a misspelled `match` would fire at any event."""
    if isinstance(given, Mapping) and isinstance(used, Mapping):
        for key, value in given.items():
            if key not in used:
                yield f"{prefix}{key}"
            else:
                yield from _ignored_keys(value, used[key], f"{prefix}{key}.")
    elif isinstance(given, list) and isinstance(used, list):
        for one, other in zip(given, used, strict=True):
            yield from _ignored_keys(one, other, prefix)


def _require_healthy(url: str) -> None:
    if not is_healthy(url, timeout=10):
        raise TemporaryError(f"no Prefect server answers at {redact_uri(url)}: `diffctl up` starts one")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} is empty")
    return values


def owner_tag() -> str:
    """Return the tag of this project's deployments; projects without a recorded name share one."""
    record = read_mapping(MARK) if MARK.is_file() else {}
    return f"{OWNER}{record.get('name', 'project')}"


def _check_owner(client: "SyncPrefectClient", entries: list[dict[str, Any]], own: str) -> None:
    """Raise UsageError if another project has deployments with the name or the work pool of these entries."""
    names, pools = {entry["name"] for entry in entries}, {entry["work_pool"]["name"] for entry in entries}
    for found in all_deployments(client):
        owners = [tag for tag in found.tags if tag.startswith(OWNER)]
        if owners and own not in owners and (found.name in names or found.work_pool_name in pools):
            name = f"{client.read_flow(found.flow_id).name}/{found.name}"
            raise UsageError(
                f"the deployment {name} in the pool {found.work_pool_name} has the tag {owners[0]}: "
                f"give the deployments and the pool of this project ({own}) other names in {FILE}, "
                "or use another Prefect server. If it is this project's, from before its name changed, "
                f"delete it with `prefect deployment delete {shlex.quote(name)}`"
            )


def _deploy(plan: dict[str, Any], owner: str) -> None:
    """Run `prefect deploy --all` with tags on each deployment: it ignores `--tag` for more than one."""
    tagged = [{**entry, "tags": [*(entry.get("tags") or ()), TAG, owner]} for entry in plan["deployments"]]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FILE
        file.write_text(yaml.safe_dump({**plan, "deployments": tagged}), encoding="utf-8")
        command = [*PYTHON_MODULE, "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        output = " ".join((done.stderr + done.stdout).split())[-500:]
        raise DiffctlError(f"`prefect deploy --all` failed: {output}")


def _ensure_pool(client: "SyncPrefectClient", name: str) -> None:
    """Create a process work pool unless a pool of this name exists."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        base = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=base))


def _read_deployment(client: "SyncPrefectClient", entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deployment as `deploy_all`."""
    from prefect.utilities.importtools import import_object

    name = f"{import_object(str(entry['entrypoint'])).name}/{entry['name']}"
    found = client.read_deployment_by_name(name)
    return {
        "name": name,
        "description": found.description or "",
        "schema": found.parameter_openapi_schema or {},
        "parameters": found.parameters,
    }
