"""Models: `diffctl sample`, `ema`, `search`, `import` and `export`."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from cli.shared.command import Options, add_command, command
from cli.shared.options import (
    JsonOptions,
    ModelOptions,
    Preset,
    check_output_suffix,
    folder_argument,
    folder_option,
    out_option,
)
from cli.shared.sampling_options import SamplingCommand, flag, refuse_idle_options
from diffusion.layout import AVERAGES
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_HELD

USUAL_NUM = 16  # images, without --num and --index


@command("cli.actions.sampled_images:sample_images", "loading the model", SamplingCommand)
class Sample(JsonOptions, ModelOptions):
    """Sample images from a model.

    Image I depends on the seed and on I only. With --champion or --run-id, settings without an option are
    those of the best cell of the model's sweep.
    """

    out: Annotated[Path, out_option(help="FILE.png (grid), .gif (denoising) or .npz.")]
    num: Annotated[
        int | None, typer.Option("--num", "-n", min=1, max=MAX_HELD, help="Number of images. [default: 16]")
    ] = None
    index: Annotated[
        int | None, typer.Option(min=0, max=MAX_COUNT, help="Only image I, as in any batch.")
    ] = None
    budget: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_COUNT, help="NFE per image: use the best cell of the model's sweep for it."
        ),
    ] = None
    klass: Annotated[
        str | None, typer.Option("--class", help="A class, by name or number. [default: all, cyclically]")
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="Images per forward pass.")] = 64

    @property
    def indices(self) -> range:
        """The indices of the images."""
        return range(self.num or USUAL_NUM) if self.index is None else range(self.index, self.index + 1)

    def check(self) -> None:
        """Raise UsageError for options that exclude each other or have no effect."""
        super().check()
        check_output_suffix(self.out, (".png", ".gif", ".npz"))
        if self.budget is not None:  # it decides all but the seed
            decided = {**self.sampling, "seed": None}
            if given := [name for name, value in decided.items() if value is not None]:
                raise UsageError(
                    f"--budget takes {flag(given[0])} from the model's sweep: give one of the two"
                )
        refuse_idle_options(self.sampling)
        if self.num is not None and self.index is not None:
            raise UsageError("--num and --index exclude each other: leave one out")


@command("cli.actions.model_formats:make_ema_models", "reading the snapshots")
class Ema(JsonOptions):
    """Make models with other EMA profiles from a training's snapshots."""

    sigma_rel: Annotated[str, typer.Option(help="Widths of the EMA profiles, such as 0.05,0.1,0.2.")]
    source: Annotated[Path, typer.Option("--from", help="The folder of snapshots.")] = AVERAGES
    out: Annotated[Path, folder_option("--out", "-o", help="The folder of the model files.")] = Path("models")


@command("cli.actions.trial_search:search_settings", "checking the points of the search")
class Search(JsonOptions):
    """Search hyperparameters: train and score every point of `search` in params.yaml.

    The models, samples and metrics of the project do not change. The same command resumes an interrupted
    search.
    """

    address: Annotated[
        str | None,
        typer.Argument(
            metavar="[ADDRESS]",
            help="With --ray: the cluster. [default: sample.address, RAY_ADDRESS, or a local Ray]",
        ),
    ] = None
    name: Annotated[str, typer.Option(help="The name of the search, stored in runs/search/NAME.")] = "search"
    ray: Annotated[bool, typer.Option("--ray", help="Run trials in parallel on Ray, one per device.")] = False
    max_parallel: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="With --ray: trials at a time. [default: all that fit]"),
    ] = None
    cpus: Annotated[
        int | None, typer.Option(min=1, max=4096, help="With --ray: cores per trial. [default: 1]")
    ] = None

    def check(self) -> None:
        """Raise UsageError for options of Ray without --ray, and without Optuna."""
        if not self.ray and any((self.address, self.max_parallel, self.cpus)):
            raise UsageError("ADDRESS, --max-parallel and --cpus need --ray: add it, or leave them out")
        if find_spec("optuna") is None:
            raise UsageError("a search needs Optuna: pip install 'diffctl[search]'")


@command("cli.stages.trial:run_trial")
class SearchTrial(Options):
    """Run one trial; `diffctl search` starts these processes."""

    folder: Annotated[Path, typer.Argument(metavar="FOLDER")]
    local: Annotated[
        bool, typer.Option("--local", help="Sample in this process, whatever sample.runner is.")
    ] = False


@dataclass(kw_only=True)
class ImportOptions(JsonOptions):
    """The output of an import."""

    out: Annotated[Path | None, out_option(help="Output file. [default: models/NAME.safetensors]")] = None


@command("cli.actions.model_formats:import_openai_model", "reading the checkpoint")
class ImportOpenai(ImportOptions):
    """Import a published checkpoint without executing code from it."""

    file: Annotated[Path, typer.Argument(help="A .pt file of guided-diffusion or improved-diffusion.")]
    preset: Annotated[Preset, typer.Option(help="Its architecture.")]


@command("cli.actions.model_formats:import_diffusers_model", "reading the pipeline")
class ImportDiffusers(ImportOptions):
    """Import a diffusers pipeline: its network and beta schedule."""

    folder: Annotated[Path, typer.Argument(help="A pipeline folder with a UNet2DModel.")]


@command("cli.actions.model_formats:export_diffusers_model", "loading the model")
class ExportDiffusers(JsonOptions, ModelOptions):
    """Export a pipeline for DDIMPipeline.from_pretrained."""

    folder: Annotated[Path, folder_argument(help="The new pipeline folder.")]


import_app = typer.Typer(name="import", help="Import a model of another project.", no_args_is_help=True)
add_command(import_app, ImportOpenai, "openai")
add_command(import_app, ImportDiffusers, "diffusers")
export_app = typer.Typer(name="export", help="Export a model for another project.", no_args_is_help=True)
add_command(export_app, ExportDiffusers, "diffusers")


@export_app.callback()
def _export() -> None:
    """Export a model for another project."""
