"""Checks that find in seconds what would fail later, each with a remedy."""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

from diffusion.check.cost_estimate import check_cost
from diffusion.check.data_checks import check_fit, check_prepared, check_raw
from diffusion.check.dependency_checks import check_guides, check_plugins
from diffusion.check.disk_space import check_disk, check_training_disk
from diffusion.check.findings import Finding, Project
from diffusion.check.machine_checks import check_device, check_memory, check_runner, check_weights
from diffusion.config import Config
from diffusion.layout import AVERAGES, CLASSIFIER_RUNS, MODEL, TRAIN_RUNS, repository_problem
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_registry import build_process
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.grid import Cell, cell_settings, grid
from diffusion.protocol.paper_mismatches import mismatches
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.guidance import guidance_weight
from diffusion.sample.network_files import matching_snapshots
from diffusion.sample.sampling_steps import call_times, format_max_eta, max_eta, sampling_grid
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.threads import single_thread
from diffusion.train.checkpoint.resume import find_resume_point, why_from_scratch
from diffusion.train.checkpoint.run_dir import run_dir_of
from diffusion.train.checkpoint.run_record import CONFIG
from diffusion.train.checkpoint.state_files import newest_step
from diffusion.train.plan import TrainPlan

MAX_NAMED = 3  # cells in a message
EVEN_IN_TIME = ("uniform", "trailing")  # spacings; the time of process edm is σ

Check = Callable[[Project], Iterator[Finding]]


def check_eta(project: Project) -> Iterator[Finding]:
    """Check whether the largest η leaves 1 − ᾱ_prev − σ² ≥ 0 at every step of every cell."""
    config, eta = project.config, max(project.config.sweep.eta)
    if eta <= 1 or not any(SAMPLERS[name].uses_eta for name in _listed(config, "sampler")):
        return  # any spacing allows η ≤ 1
    with single_thread():
        found = next(_too_large(config, eta), None)
    if found is not None:
        steps, limit = found
        message = (
            f"sweep.eta: {eta} is too large for {steps} steps, "
            f"where at most {limit} leaves a real direction term"
        )
        yield Finding("error", "sampling", message, "lower it in sweep.eta, or drop these steps")


def check_spacing(project: Project) -> Iterator[Finding]:
    """Check whether the process has the times of every spacing, with steps at small noise."""
    config = project.config
    process, steps = build_process(config.process), max(config.sweep.steps)
    for spacing in _listed(config, "spacing"):
        try:
            with single_thread():
                _grid_of(config, process, steps, spacing)
        except UsageError as error:
            yield Finding("error", "sampling", str(error), "change sample.spacing or its spacing_options")
        else:
            if config.process.schedule == "edm" and spacing in EVEN_IN_TIME:
                message = f"spacing {spacing} is even in σ for process.schedule edm: almost all are noise"
                yield Finding("warning", "sampling", message, "use spacing karras")


def _grid_of(config: Config, process: NoiseProcess, steps: int, spacing: str) -> TimeGrid:
    """Return the times of the cells with this spacing and these steps."""
    cell = Cell(steps=steps, eta=0.0, spacing=spacing)
    return sampling_grid(cell_settings(config.sample, cell), process)


def _too_large(config: Config, eta: float) -> Iterator[tuple[int, str]]:
    """Yield the numbers of steps for which η is too large, with the limit."""
    process = build_process(config.process)
    for steps, spacing in product(config.sweep.steps, _listed(config, "spacing")):
        times = _grid_of(config, process, steps, spacing)
        if eta > max_eta(times):
            yield steps, format_max_eta(times)


def _listed(config: Config, axis: str) -> tuple[str, ...]:
    """Return the values of an axis of the grid."""
    values: tuple[str, ...] = getattr(config.sweep, axis) or (getattr(config.sample, axis),)
    return values


def check_process(project: Project) -> Iterator[Finding]:
    """Check whether the network's prediction can be solved for x_0 and ε at every time of the process."""
    try:
        with single_thread():
            build_process(project.config.process)
    except UsageError as error:
        yield Finding("error", "process", str(error))


def check_repository(project: Project) -> Iterator[Finding]:
    """Check whether DVC can run the stages here."""
    if problem := repository_problem(project.root):
        yield Finding("error", "repository", *problem)


def check_averages(project: Project) -> Iterator[Finding]:
    """Check whether the EMA profiles of the sweep can be made from the finished training's snapshots."""
    if not project.config.sweep.sigma_rels or not project.is_trained:
        return
    try:
        matching_snapshots(project.root / MODEL, project.root / AVERAGES)
    except DiffctlError as error:
        yield Finding("error", "sampling", f"sweep.ema: {error}")


def check_guidance(project: Project) -> Iterator[Finding]:
    """Check whether every guidance interval contains a step."""
    config = project.config
    settings = {cell.name: cell_settings(config.sample, cell) for cell in grid(config.sample, config.sweep)}
    limited = {name: one for name, one in settings.items() if one.nfe is None}
    with single_thread():
        unguided = [name for name, one in limited.items() if not _is_guided(config, one)]
    if unguided:
        message = f"guidance applies at no step of {', '.join(unguided[:MAX_NAMED])}"
        message += f" and {len(unguided) - MAX_NAMED} more cells" if len(unguided) > MAX_NAMED else ""
        yield Finding("warning", "sampling", message, "`diffctl show steps` lists σ/α of each step")


def _is_guided(config: Config, settings: SampleSettings) -> bool:
    """Return whether the weight of guidance is positive at some call of the network."""
    process = build_process(config.process)
    return any(guidance_weight(settings, process, t) for t in call_times(settings, process))


def check_protocol(project: Project) -> Iterator[Finding]:
    """Report every mismatch with the paper of `evaluate.protocol`, and its notes."""
    name = project.config.evaluate.protocol
    if name is None:
        return
    subject, found = f"protocol {name}", mismatches(name, project.config.model_dump(mode="json"))
    remedy = f"`diffctl use --protocol {name}` sets what can be set; or leave evaluate.protocol out"
    for mismatch in found:
        yield Finding("warning", subject, str(mismatch), remedy)
    if not found:
        yield Finding("ok", subject, f"as {PROTOCOLS[name].paper}")
    for note in PROTOCOLS[name].remarks:
        yield Finding("ok", subject, note)


def check_start(project: Project) -> Iterator[Finding]:
    """Report where the training and the classifier's training start."""
    if not project.is_ready or project.plan is None:
        return
    yield Finding("ok", "training", _describe_start(project.plan, project.root / TRAIN_RUNS))
    try:
        plan = project.classifier_plan
    except DiffctlError as error:
        yield Finding("warning", "classifier", str(error), "`diffctl stage classifier` would refuse it")
    else:
        if plan is not None:
            yield Finding("ok", "classifier", _describe_start(plan, project.root / CLASSIFIER_RUNS))


def _describe_start(plan: TrainPlan, root: Path) -> str:
    folder, settings, code = run_dir_of(plan, root)
    if step := newest_step(folder):
        return f"resumes after step {step:,} of {plan.train.steps:,} in {folder}"
    begins = f"begins at step 0 of {plan.train.steps:,}"
    if (folder / CONFIG).exists():  # discarded, or ended before its first checkpoint
        return begins
    if start := find_resume_point(folder, settings, code):
        return start.describe()
    return why_from_scratch(folder, settings, code) or begins


ALL: tuple[Check, ...] = (
    check_repository,
    check_plugins,
    check_process,
    check_raw,
    check_prepared,
    check_fit,
    check_spacing,
    check_eta,
    check_guidance,
    check_averages,
    check_guides,
    check_device,
    check_runner,
    check_memory,
    check_disk,
    check_weights,
    check_protocol,
    check_start,
    check_cost,
)
OF_STAGE: dict[str, tuple[Check, ...]] = {
    "reference": (check_weights,),
    "train": (
        check_process,
        check_prepared,
        check_fit,
        check_spacing,
        check_eta,
        check_memory,
        check_training_disk,
    ),
    "sample": (check_spacing, check_eta, check_averages, check_guides),
    "evaluate": (check_weights,),
}  # other stages check their inputs themselves, immediately


def check(config: Config, root: Path = Path()) -> list[Finding]:
    """Run all checks of the project in `root`."""
    return list(iter_findings(config, root))


def iter_findings(config: Config, root: Path = Path()) -> Iterator[Finding]:
    """Run all checks, and yield each finding immediately."""
    return _run(ALL, Project(config, root))


def preflight(config: Config, stage: str, root: Path = Path()) -> list[Finding]:
    """Run a stage's checks and return their warnings; UsageError with the remedy of the first error."""
    findings = list(_run(OF_STAGE[stage], Project(config, root)))
    for finding in findings:
        if finding.level == "error":
            raise UsageError(": ".join(part for part in (finding.message, finding.remedy) if part))
    return [finding for finding in findings if finding.level == "warning"]


def _run(checks: tuple[Check, ...], project: Project) -> Iterator[Finding]:
    for one in checks:
        findings = list(one(project)) if one is check_process else one(project)
        yield from findings
        if one is check_process and findings:
            return  # the other checks build the process
