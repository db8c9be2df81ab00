"""What prefect.yaml says that Prefect reads over: keys that it does not know, at whatever depth.

Prefect itself tells of none of them, and a trigger whose `match` is misspelled fires at anything.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

STEPS = ("build", "push", "pull")  # sections of steps, each a function by name with its arguments
OF_ANY_STEP = {"id", "requires"}
DEFINITIONS = "definitions"  # what Prefect leaves to anchors

Template = dict[str, Any]  # a work pool's, of its jobs


def process_template(pool: str) -> Template:
    """The job template of a pool of processes, of whatever name."""
    from prefect.workers.process import ProcessWorker

    return ProcessWorker.get_default_base_job_template()


def unknown_keys(
    plan: Mapping[str, Any], template_of: Callable[[str], Template] = process_template
) -> Iterator[str]:
    """The keys of prefect.yaml, dotted, that Prefect ignores, and parameters that a flow does not take.

    `template_of` gives the job template of a work pool by its name.
    """
    from prefect.cli.deploy._models import PrefectYamlModel

    yield from (name for name in others(plan, PrefectYamlModel) if name != DEFINITIONS)
    yield from _of_steps(plan, "")
    for entry in _mappings(plan.get("deployments")):
        yield from _of_deployment(entry, f"{entry.get('name')}.", template_of)


def others(values: Mapping[str, Any], kind: Any, where: str = "") -> list[str]:
    """The keys that are no field of a pydantic class."""
    fields = {field.alias or name for name, field in kind.model_fields.items()}
    return [f"{where}{key}" for key in values if key not in fields]


def _of_deployment(
    entry: Mapping[str, Any], name: str, template_of: Callable[[str], Template]
) -> Iterator[str]:
    from prefect.cli.deploy._models import (
        ConcurrencyLimitSpec,
        DeploymentConfig,
        RawScheduleConfig,
        WorkPoolConfig,
    )

    yield from others(entry, DeploymentConfig, name)
    yield from _of_steps(entry, name)
    pool, limit = _mapping(entry.get("work_pool")), _mapping(entry.get("concurrency_limit"))
    yield from others(pool, WorkPoolConfig, f"{name}work_pool.")
    yield from _of_job(pool, f"{name}work_pool.job_variables.", template_of)
    yield from others(limit, ConcurrencyLimitSpec, f"{name}concurrency_limit.")
    for schedule in _mappings(entry.get("schedules")):
        yield from others(schedule, RawScheduleConfig, f"{name}schedules.")
    for trigger in _mappings(entry.get("triggers")):
        yield from _of_trigger(trigger, f"{name}triggers.", "Deployment")
    yield from _of_parameters(entry, name)


def _of_steps(values: Mapping[str, Any], where: str) -> Iterator[str]:
    """Steps that are no function, and arguments that theirs does not take."""
    from prefect.utilities.importtools import import_object

    for section in STEPS:
        given = values.get(section)
        for step in _mappings([given] if isinstance(given, Mapping) else given):
            for path, arguments in step.items():
                place, known = f"{where}{section}.{path}", _mapping(arguments)
                try:
                    taken = inspect.signature(import_object(path)).parameters.values()
                except (ImportError, AttributeError, ValueError, TypeError):
                    if "requires" not in known:  # else Prefect installs what has it
                        yield place
                    continue
                if not any(one.kind is one.VAR_KEYWORD for one in taken):
                    names = OF_ANY_STEP.union(one.name for one in taken)
                    yield from (f"{place}.{key}" for key in known if key not in names)


def _of_job(pool: Mapping[str, Any], where: str, template_of: Callable[[str], Template]) -> Iterator[str]:
    """Job variables that the pool's template has no use for."""
    if given := _mapping(pool.get("job_variables")):
        variables = _mapping(template_of(str(pool.get("name"))).get("variables"))
        yield from (f"{where}{key}" for key in given if key not in _mapping(variables.get("properties")))


def _of_trigger(trigger: Mapping[str, Any], where: str, prefix: str = "") -> Iterator[str]:
    """Keys that a trigger of its type does not have, and those of the triggers that it is composed of."""
    from prefect.events.schemas import automations, deployment_triggers
    from prefect.events.schemas.deployment_triggers import deployment_trigger_discriminator

    kind = deployment_trigger_discriminator(trigger)
    module = deployment_triggers if prefix else automations
    known = getattr(module, f"{prefix}{str(kind).capitalize()}Trigger", None)
    if known is None:
        yield f"{where}type {kind}"
        return
    yield from others(trigger, known, where)
    if metric := _mapping(trigger.get("metric")):
        yield from others(metric, automations.MetricTriggerQuery, f"{where}metric.")
    for part in _mappings(trigger.get("triggers")):
        yield from _of_trigger(part, f"{where}triggers.")


def _of_parameters(entry: Mapping[str, Any], where: str) -> Iterator[str]:
    """Parameters of a deployment or a schedule that the flow does not take, and fields that those lack."""
    from prefect.utilities.callables import parameter_schema
    from prefect.utilities.importtools import import_object

    try:
        flow = import_object(str(entry.get("entrypoint")))
    except (ImportError, AttributeError, ValueError):
        yield f"{where}entrypoint {entry.get('entrypoint')}"
        return
    schema = parameter_schema(flow.fn)
    holders = [(entry, where), *((one, f"{where}schedules.") for one in _mappings(entry.get("schedules")))]
    for holder, place in holders:
        for name, value in _mapping(holder.get("parameters")).items():
            if name not in schema.properties:
                yield f"{place}parameters.{name}"
            elif reference := schema.properties[name].get("$ref"):
                fields = schema.definitions[reference.rpartition("/")[2]]["properties"]
                yield from (f"{place}parameters.{name}.{key}" for key in _mapping(value) if key not in fields)


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping; else, as of a template's text, an empty one."""
    return value if isinstance(value, Mapping) else {}


def _mappings(values: Any) -> list[Mapping[str, Any]]:
    """Those of a list that are mappings."""
    known = values if isinstance(values, Sequence) and not isinstance(values, str) else []
    return [one for one in known if isinstance(one, Mapping)]
