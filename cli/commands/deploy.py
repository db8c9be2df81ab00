"""`diffctl deploy`: prefect.yaml on a Prefect server, with the pool and the automations that it needs."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.shared.first_word import begin
from cli.shared.tables import show, table

if TYPE_CHECKING:
    from flows.prefect_server.deployments import Deployment


def deploy(
    params: Annotated[
        bool, typer.Option("--params", help="Show the parameters that each deployment takes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Create or update on Prefect the work pool, deployments and automations of prefect.yaml.

    The server is that of PREFECT_API_URL, else that of `diffctl up`.
    """
    from flows.prefect_server.local_servers import require_prefect_url
    from tracking.connectivity import redact_uri

    url = require_prefect_url()
    begin(f"asking Prefect at {redact_uri(url)}", as_json)
    from flows.prefect_server.deployments import deploy_all

    deployed = deploy_all(url)
    if as_json:
        typer.echo(json.dumps([vars(one) for one in deployed], indent=2))
        return
    for one in deployed:
        typer.echo(f"{one.name}: {one.description}")
        if params:
            _show_parameters(one)
    typer.echo(f"on Prefect at {redact_uri(url)}; a worker carries them out: docs/operations.md says how")


def _show_parameters(one: "Deployment") -> None:
    listed = table("PARAMETER", "TYPE", "VALUE", "")
    for name, schema in one.schema.get("properties", {}).items():
        value = one.parameters.get(name, schema.get("default"))
        kind = _kind(schema, one.schema.get("definitions", {}))
        listed.add_row(name, kind, "" if value is None else json.dumps(value), schema.get("description", ""))
    show(listed)


def _kind(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema in a few words: its type, and the bounds of a number."""
    if reference := schema.get("$ref"):
        fields = definitions.get(reference.rpartition("/")[2], {}).get("properties", {})
        return f"object of {', '.join(fields)}"
    if choices := schema.get("anyOf"):
        return " or ".join(_kind(choice, definitions) for choice in choices)
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}), definitions)}"
    ends = [schema.get(name) for name in ("minimum", "maximum")]
    bounds = f" {ends[0]:,} to {ends[1]:,}" if None not in ends else ""
    return f"{schema.get('type', 'anything')}{bounds}"
