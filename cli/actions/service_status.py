"""`diffctl status`: servers, scheduled runs, champion, disk and undelivered metrics."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any

import typer

from cli.commands.servers import Status
from cli.shared.tables import show, table
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.memory import format_bytes
from flows.prefect_server.flow_runs import Row, prefect_status
from flows.prefect_server.local_servers import LocalServer, local_servers, prefect_url
from tracking.connectivity import redact_uri
from tracking.registry.registered_models import list_versions, project_model, read_champion_history
from tracking.spool.spool_status import DeliveryState, list_trainings
from tracking.store import tracking_uri

MIN_FREE = 5e9  # bytes on the disk of this folder
MANY_KEPT_OUT = 3  # models in a row


def show_status(options: Status) -> None:
    """Carry out `diffctl status`; with --check exit with 1 if something needs attention."""
    check = options.check_problems
    url = prefect_url()
    status: dict[str, list[Row]] = {"runs": [], "deployments": [], "workers": []}
    failure: DiffctlError | None = None
    try:
        status = prefect_status(url) if url else status
    except DiffctlError as error:
        failure = error
    disk = shutil.disk_usage(".")
    found = {
        "servers": [_row(server) for server in local_servers()],
        "prefect": url,
        **status,
        "champion": _champion(),
        "disk": {"free": disk.free, "total": disk.total},
        "undelivered": _undelivered(),
    }
    problems = [*([str(failure)] if failure else []), *_problems(found)]
    shown = partial(_show, found, None if failure else url, problems if check else [])
    options.answer({**found, "problems": problems}, shown)
    if failure and not check:
        raise failure
    if problems and check:
        raise typer.Exit(1)


def _show(found: dict[str, Any], url: str | None, problems: list[str]) -> None:
    _show_servers(found["servers"])
    if url:
        _show_queue(found["runs"], url)
        _show_deployments(found["deployments"], found["workers"])
    _show_rest(found)
    for problem in problems:
        typer.echo(f"problem: {problem}")


def _problems(found: dict[str, Any]) -> Iterator[str]:
    """Yield what needs attention."""
    for server in found["servers"]:
        if server["state"] != "up":
            yield f"{server['server']} is {server['state']}"
    for run in found["deployments"]:
        if run["failed"]:
            yield f"the last run of {run['deployment']} is {run['state']} ({run['reason']})"
    if found["deployments"] and not any(worker["online"] for worker in found["workers"]):
        yield "no worker polls for scheduled runs"
    if found["disk"]["free"] < MIN_FREE:
        yield f"only {format_bytes(found['disk']['free'])} are free on the disk of this folder"
    if found["undelivered"]:
        yield f"trainings with undelivered metrics: {len(found['undelivered'])}"
    champion = found["champion"] or {}
    if "unknown" in champion:
        yield str(champion["unknown"])
    if champion.get("kept_out", 0) >= MANY_KEPT_OUT:
        yield f"the last {champion['kept_out']} models were kept out"


def _champion() -> dict[str, Any] | None:
    """Return the champion's last move and the models kept out since; if MLflow is away the reason."""
    try:
        name = project_model()
        moves = read_champion_history(name).events
    except UsageError:  # no registered model
        return None
    except DiffctlError as error:
        return {"unknown": str(error)}
    if not moves:
        return None
    newest = max(move.after for move in moves)
    kept_out = sum(one.version > newest for one in list_versions(name))
    at = datetime.fromtimestamp(moves[-1].at / 1000, UTC)
    values = moves[-1].model_dump(include={"after", "how", "who", "reason"})
    return {"model": name, **values, "time": f"{at:%Y-%m-%d %H:%M}", "kept_out": kept_out}


def _undelivered() -> list[str]:
    """Return the folders of ended trainings with metrics that MLflow does not have."""
    uri = tracking_uri()
    ended = (one.folder for one in list_trainings() if one.state != "running")
    return [str(folder) for folder in ended if not DeliveryState.load(folder, uri).complete]


def _show_deployments(deployments: list[Row], workers: list[Row]) -> None:
    if not deployments:
        return
    listed = table("DEPLOYMENT", "LAST RUN", "END (UTC)", "REASON")
    for run in deployments:
        reason = run["reason"] if run["failed"] else ""
        listed.add_row(run["deployment"], run["state"] or "none", run["time"], reason)
    show(listed)
    for one in workers:
        state, polled = "online" if one["online"] else "offline", one["time"] or "never"
        typer.echo(f"worker {one['worker']} of pool {one['pool']} is {state}, last poll {polled} UTC")


def _show_rest(found: dict[str, Any]) -> None:
    if (champion := found["champion"]) and "unknown" not in champion:
        kept_out = champion["kept_out"]
        since = f"; the {kept_out} models registered since were kept out" if kept_out else ""
        typer.echo(
            f"champion: {champion['model']} version {champion['after']} since {champion['time']} UTC, by "
            f"{champion['how']}{since}"
        )
    free, total = (format_bytes(found["disk"][name]) for name in ("free", "total"))
    typer.echo(f"disk: {free} of {total} are free")
    if found["undelivered"]:
        typer.echo(f"trainings with undelivered metrics: {len(found['undelivered'])} (see `diffctl sync`)")


def _row(server: LocalServer) -> dict[str, Any]:
    """Return a server as JSON values. Its state is up, silent (alive, but not answering) or dead."""
    alive = server.alive
    answer = server.version if alive else None
    return {
        "server": server.kind.name,
        "state": ("up" if answer else "silent") if alive else "dead",
        "address": server.page,
        "process": server.pid,
        "version": answer,
        "installed": version(server.kind.name),
    }


def _show_servers(rows: list[dict[str, Any]]) -> None:
    if not rows:
        typer.echo("no server of this folder is running: `diffctl up` starts them")
        return
    listed = table("SERVER", "STATE", "ADDRESS", "VERSION", "PROCESS")
    for row in rows:
        listed.add_row(row["server"], row["state"], row["address"], row["version"] or "", str(row["process"]))
    show(listed)
    for row in rows:
        if row["version"] not in (None, row["installed"]):
            typer.echo(
                f"{row['server']} {row['version']} is running, but {row['installed']} is installed: "
                "restart it with `diffctl down` and `diffctl up`"
            )
        if row["state"] != "up":
            typer.echo(f"{row['server']} is {row['state']}: see runs/servers/{row['server']}.log")


def _show_queue(runs: list[Row], url: str) -> None:
    if not runs:
        typer.echo(f"no active or scheduled run on Prefect at {redact_uri(url)}")
        return
    listed = table("RUN", "DEPLOYMENT", "STATE", "START (UTC)", "ID")
    for run in runs:
        listed.add_row(run["name"], run["deployment"] or "", run["state"], run["time"], run["flow_run"])
    show(listed)
