"""Where the trainings of a configuration start or resume."""

from collections.abc import Iterator
from pathlib import Path

from diffusion.check.findings import Finding, Project
from diffusion.layout import CLASSIFIER_RUNS, TRAIN_RUNS
from diffusion.system.devices import default_device
from diffusion.system.errors import DiffctlError
from diffusion.train.checkpoint.resume import CONFIG, find_resume_point, why_from_scratch
from diffusion.train.checkpoint.run_dir import run_dir_of
from diffusion.train.checkpoint.state_files import newest_step
from diffusion.train.classifier_plan import plan_classifier
from diffusion.train.plan import TrainPlan
from diffusion.train.train_config import ClassifierSections


def check_start(project: Project) -> Iterator[Finding]:
    """Report where the training and the classifier's training start."""
    if not project.is_ready or project.plan is None:
        return
    yield Finding("ok", "training", _start(project.plan, project.root / TRAIN_RUNS))
    config = project.config
    if config.classifier is None:
        return
    sections = ClassifierSections(data=config.data, process=config.process, classifier=config.classifier)
    try:
        plan = plan_classifier(sections, project.train_meta(), default_device())
    except DiffctlError as error:
        yield Finding("warning", "classifier", str(error), "`diffctl stage classifier` would refuse it")
    else:
        yield Finding("ok", "classifier", _start(plan, project.root / CLASSIFIER_RUNS))


def _start(plan: TrainPlan, root: Path) -> str:
    """Describe where a training starts."""
    folder, settings, code = run_dir_of(plan, root)
    if step := newest_step(folder):
        return f"goes on after step {step:,} of {plan.train.steps:,} in {folder}"
    begins = f"begins at step 0 of {plan.train.steps:,}"
    if (folder / CONFIG).exists():  # and was discarded, or ended before it saved anything
        return begins
    if start := find_resume_point(folder, settings, code):
        return start.describe()
    return why_from_scratch(folder, settings, code) or begins
