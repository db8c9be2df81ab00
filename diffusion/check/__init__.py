"""Checks that find in seconds what would fail later, each with a remedy."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from diffusion.check.cost_estimate import check_cost
from diffusion.check.data_checks import check_fit, check_prepared, check_raw
from diffusion.check.dependency_checks import (
    check_base,
    check_dependencies,
    check_guides,
    check_model,
    check_plugins,
    check_samples,
    check_times,
)
from diffusion.check.findings import Finding, Project
from diffusion.check.machine_checks import (
    check_device,
    check_disk,
    check_memory,
    check_precision,
    check_states,
    check_weights,
)
from diffusion.check.trial import check_trial
from diffusion.config import Config
from diffusion.evaluate.training_scores import scored_images
from diffusion.layout import CLASSIFIER_RUNS, TRAIN_RUNS, repository_problem
from diffusion.process.noise_process import NoiseProcess, build_process
from diffusion.project import version_problem
from diffusion.protocol.paper_mismatches import mismatches
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.generate import check_settings
from diffusion.sample.guidance import build_guidance, guidance_weight
from diffusion.sample.sampling_steps import call_times, check_eta, sampling_grid
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.registry import find_plugin_line, plugin_error
from diffusion.system.threads import single_thread
from diffusion.train.checkpoint.resume import find_resume_point, why_from_scratch
from diffusion.train.checkpoint.run_dir import run_dir_of
from diffusion.train.checkpoint.run_record import CONFIG
from diffusion.train.checkpoint.state_files import newest_step
from diffusion.train.plan import TrainPlan, plan_artefact

MAX_NAMED = 3  # cells in a message
EVEN_IN_TIME = ("uniform", "trailing")  # spacings; the time of process edm is σ

Check = Callable[[Project], Iterator[Finding]]


def check_process(project: Project) -> Iterator[Finding]:
    """Check whether the process can be trained and sampled at every time."""
    try:
        with single_thread():
            build_process(project.process)
    except UsageError as error:
        yield Finding("error", "process", str(error))


def check_spacing(project: Project) -> Iterator[Finding]:
    """Check whether the process has the times of every cell, and whether they allow its η."""
    config, process = project.config, build_process(project.process)
    problems = dict.fromkeys(project.cell_problems)
    seen = set[str]()
    for settings in project.cells.values():
        eta = settings.eta if SAMPLERS[settings.sampler].uses_eta else 0.0
        key = f"{settings.steps} {eta} {settings.spacing} {settings.spacing_options}"
        if key in seen:
            continue
        seen.add(key)
        try:
            with single_thread():
                check_eta(sampling_grid(settings, process), eta)
        except UsageError as error:
            problems[str(error)] = None
    remedy = "change sweep.eta, sweep.steps, or sample.spacing with its options"
    yield from (Finding("error", "sampling", problem, remedy) for problem in problems)
    for spacing in config.sweep.spacing or (config.sample.spacing,):
        if config.process.schedule == "edm" and spacing in EVEN_IN_TIME:
            message = f"spacing {spacing} is even in σ for process.schedule edm: almost all are noise"
            yield Finding("warning", "sampling", message, "use spacing karras")


def check_repository(project: Project) -> Iterator[Finding]:
    """Check whether DVC can run the stages here, and whether they are of the installed version."""
    if problem := repository_problem():
        yield Finding("error", "repository", *problem)
    elif problem := version_problem(Path.cwd()):
        yield Finding("warning", "project", *problem)


def check_rules(project: Project) -> Iterator[Finding]:
    """Check whether the guidance rule of every cell fits its sampler and the process."""
    process = build_process(project.process)
    problems: dict[str, None] = {}
    for one in project.cells.values():
        try:
            if one.guidance:
                build_guidance(one, process)
        except UsageError as error:
            problems[str(error)] = None
    yield from (Finding("error", "sampling", problem) for problem in problems)


def check_training_scores(project: Project) -> Iterator[Finding]:
    """Check whether the model allows the settings of the scores during training."""
    if project.plan is None or not project.config.train.eval_every:
        return
    try:
        with single_thread():
            check_settings(plan_artefact(project.plan), scored_images(project.config).settings)
    except UsageError as error:
        message = f"train.eval_every would score nothing: {error}"
        yield Finding("error", "training", message, "change train.eval_steps, or the section sample")


def check_guidance(project: Project) -> Iterator[Finding]:
    """Check whether every guidance interval contains a step, and whether the model's loss fits guidance."""
    process = build_process(project.process)
    with single_thread():
        unguided = [cell.name for cell, one in project.cells.items() if _is_never_guided(one, process)]
    if unguided:
        message = f"guidance applies at no step of {', '.join(unguided[:MAX_NAMED])}"
        message += f" and {len(unguided) - MAX_NAMED} more cells" if len(unguided) > MAX_NAMED else ""
        yield Finding("warning", "sampling", message, "`diffctl show steps` lists σ/α of each step")
    if project.config.process.loss == "contrastive" and any(one.guidance for one in project.cells.values()):
        message = "guidance lacks the correction that the authors of process.loss contrastive apply"
        remedy = "set guidance to 0, or process.loss to simple: `diffctl docs training` says why"
        yield Finding("warning", "sampling", message, remedy)


def _is_never_guided(settings: SampleSettings, process: NoiseProcess) -> bool:
    """Return whether the settings have a guidance interval that contains no step."""
    if settings.guidance_interval is None:
        return False
    with suppress(UsageError):  # reported by check_spacing
        return not any(guidance_weight(settings, process, t) for t in call_times(settings, process))
    return False


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
    yield Finding("ok", "training", _describe_start(project.plan, TRAIN_RUNS))
    try:
        plan = project.classifier_plan
    except DiffctlError as error:
        yield Finding("warning", "classifier", str(error), "`diffctl stage classifier` would refuse it")
    else:
        if plan is not None:
            yield Finding("ok", "classifier", _describe_start(plan, CLASSIFIER_RUNS))


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
    check_raw,
    check_prepared,
    check_fit,
    check_spacing,
    check_times,
    check_training_scores,
    check_guidance,
    check_base,
    check_dependencies,
    check_guides,
    check_device,
    check_precision,
    check_weights,
    check_protocol,
    check_start,
    check_trial,
    check_rules,
    check_memory,
    check_disk,
    check_cost,
)
OF_STAGE: dict[str, tuple[Check, ...]] = {
    "reference": (check_weights,),
    "train": (
        check_prepared,
        check_fit,
        check_spacing,
        check_times,
        check_training_scores,
        check_base,
        check_dependencies,
        check_guides,
        check_trial,
        check_rules,
        check_memory,
        check_states,
        check_precision,
    ),
    "sample": (check_spacing, check_rules, check_base, check_dependencies, check_guides),
    "evaluate": (check_weights, check_samples),
    "report": (check_model, check_samples),
}  # other stages check their inputs themselves, immediately


def check(config: Config, checks: Sequence[Check] = ALL) -> Iterator[Finding]:
    """Run checks of the project in the working directory, and yield each finding immediately.

    An error of the process or of the trial is the last finding: the checks after it run the same code.
    UsageError, with file and line, if a plugin's code fails elsewhere.
    """
    project = Project(config)
    for one in (check_process, *checks):
        levels = set()
        try:
            for finding in one(project):
                levels.add(finding.level)
                yield finding
        except Exception as error:
            line = find_plugin_line(error)
            if line is None or isinstance(error, DiffctlError):
                raise
            raise plugin_error(error, line) from error
        if "error" in levels and one in (check_process, check_trial):
            return


def preflight(config: Config, stage: str) -> list[Finding]:
    """Run a stage's checks and return their warnings; UsageError with the remedy of the first error."""
    findings = list(check(config, OF_STAGE[stage]))
    for finding in findings:
        if finding.level == "error":
            raise UsageError(": ".join(part for part in (finding.message, finding.remedy) if part))
    return [finding for finding in findings if finding.level == "warning"]
