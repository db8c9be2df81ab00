"""The stage `train`: the denoiser."""

from functools import partial

from cli.commands.pipeline import TrainingOptions
from cli.shared.console import print_line
from cli.stages.context import preflight
from cli.stages.training import follow, stage_command, tracked_training
from diffusion.config import load
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import AVERAGES, LOSS_CURVE, MODEL, PREPARED, RUN, TRAIN_RUNS
from diffusion.system.checksums import add_checksum
from diffusion.system.devices import default_device
from diffusion.system.files import write_json
from diffusion.system.params import load_sections
from diffusion.train.distributed.launch import is_follower
from diffusion.train.plan import plan_training
from diffusion.train.train_config import TrainSections
from diffusion.train.trainer import Trainer
from flows.dvc_pull import fetch_networks, fetch_pretrained
from tracking.runs.base_models import update_base


def run_stage(options: TrainingOptions) -> None:
    """Train the denoiser, or resume its training."""
    sections = load_sections(TrainSections)
    fetch_pretrained(sections.train.init_from)
    config = None
    if not is_follower():
        fetch_networks(config := load())
        update_base(config.sample.base)  # its faults are no surprise after the training
        config = preflight("train")
    store = open_store(PREPARED / "train", PreparedMeta)
    plan = plan_training(sections, store.meta, default_device())
    paths = TRAIN_RUNS, LOSS_CURVE, MODEL, AVERAGES
    trainer = Trainer(plan, store, stage_command("train"), partial(print_line, "train"), *paths)
    if config is None:
        return follow(trainer)
    training = trainer.lead(partial(tracked_training, plan, config), fresh=options.fresh, keep=options.keep)
    write_json(RUN, add_checksum(training.identity()))
