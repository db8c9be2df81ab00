"""Models and images: `sample`, `encode`, `grid`, `ema`, `search`, `import`, `export`, `publish` and more."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from cli.shared.command import CommandOptions, argument, command, group, option, out_option
from cli.shared.options import (
    JsonOptions,
    ModelSourceOptions,
    Preset,
    RayOptions,
    StorePath,
    flag_of,
    sampling_options,
)
from diffusion.layout import AVERAGES, GRIDS
from diffusion.system.errors import UsageError, printable
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_HELD, MAX_STEPS

app = typer.Typer()
import_app = group(app, "import", "Import a model of another project.")
export_app = group(app, "export", "Export a model for another project.")
publish_app = group(app, "publish", "Publish a model.")

MAX_FRAMES = 10_000  # of an interpolation
USUAL_NUM = 16  # images, without --num and --index


@command(app, "cli.actions.images.sampled_images:sample_images", "loading the model")
class Sample(JsonOptions, ModelSourceOptions):
    """Sample images from a model.

    Image I depends on the seed and on I only. With --champion or --run-id, settings without an option are
    those of the best cell of the model's sweep.
    """

    out: Path = out_option("FILE.png (grid), .gif (denoising) or .npz.", ".png", ".gif", ".npz")
    num: int | None = option("Number of images. [default: 16]", "--num", "-n", min=1, max=MAX_HELD)
    index: int | None = option("Only image I, as in any batch.", min=0, max=MAX_COUNT)
    budget: int | None = option("NFE per image: sample the sweep's best cell for it.", min=1, max=MAX_COUNT)
    klass: str | None = option("A class by name or number. [default: all in turn]", "--class")
    low_res: Path | None = option(
        "Enlarge the pictures of this folder, of a model with model.low_res. [default: held-out images]",
        metavar="FOLDER",
    )
    batch_size: int = option("Images per forward pass.", min=1, max=MAX_BATCH, default=64)
    scale: int | None = option(
        "Repeat each pixel N times in PNG and GIF. [default: to about 64 pixels]", metavar="N", min=1, max=32
    )
    sampling: dict[str, Any] = sampling_options()

    @property
    def indices(self) -> range:
        """The indices of the images."""
        return range(self.num or USUAL_NUM) if self.index is None else range(self.index, self.index + 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget is not None:  # it decides all but the seed
            decided = {**self.sampling, "seed": None}
            if given := [flag_of(name) for name, value in decided.items() if value is not None]:
                raise UsageError(f"--budget takes {given[0]} from the model's sweep: give one of them")
        if self.num is not None and self.index is not None:
            raise UsageError("--num and --index exclude each other: leave one out")
        if self.low_res is not None and self.sampling.get("base") is not None:
            raise UsageError("--low-res and --base exclude each other: leave one out")
        if self.scale is not None and self.out.suffix == ".npz":
            raise UsageError("--scale is for pictures: give --out FILE.png or FILE.gif, or leave it out")


class CodeOptions(JsonOptions, ModelSourceOptions):
    """The options of DDIM inversion."""

    store: StorePath = None
    steps: int = option("DDIM steps in each direction.", min=1, max=MAX_STEPS, default=100)
    sampling: dict[str, Any] = sampling_options(["spacing", "spacing_options"])


@command(app, "cli.actions.images.image_analysis:encode", "loading the model")
class Encode(CodeOptions):
    """Encode images as noise by DDIM inversion (η = 0). Also prints the error of the reconstruction.

    For a model of process edm the spacing is karras by default.
    """

    out: Path = out_option("FILE.npz (codes) or .png (images, codes, reconstructions).", ".npz", ".png")
    images: list[str] | None = argument("Files or numbers in the store. [default: first --num]", paths=True)
    num: int = option("Number of images from the store.", "--num", "-n", min=1, max=MAX_HELD, default=16)
    klass: str | None = option("A class by name or number. [default: the image's]", "--class")
    batch_size: int = option("Images per forward pass.", min=1, max=MAX_BATCH, default=64)


@command(app, "cli.actions.images.image_analysis:interpolate", "loading the model")
class Interpolate(CodeOptions):
    """Interpolate between two images by slerp of their codes.

    For a model of process edm the spacing is karras by default.
    """

    first: str = argument("An image file, or a number in the store.", paths=True)
    second: str = argument("Another one.", paths=True)
    out: Path = out_option("FILE.png (one row) or .gif.", ".png", ".gif")
    frames: int = option("Number of images, both ends included.", min=2, max=MAX_FRAMES, default=9)
    klass: str | None = option(
        "The class of all images. [default: of the ends, or none if they differ]",
        "--class",
    )


@command(app, "cli.actions.images.learned_grid:learn_grid", "loading the model")
class Grid(JsonOptions, ModelSourceOptions):
    """Learn the times of few steps for a model (GITS, 2405.11326), for the spacing `learned`.

    They minimise how far steps leave the bent trajectories of the model. Learning takes 60 network calls per
    trajectory, and no training.
    """

    steps: str = option("The numbers of steps.", metavar="S,…", default="4,6,8,10")
    out: Path = option("The file of the times.", "--out", "-o", metavar="FILE", default=GRIDS)
    num: int = option("Number of trajectories.", "--num", "-n", min=1, max=MAX_HELD, default=256)
    batch_size: int = option("Images per forward pass.", min=1, max=MAX_BATCH, default=64)
    sampling: dict[str, Any] = sampling_options(["guidance", "seed", "clip"])


@command(app, "cli.actions.models.model_formats:make_ema_models", "reading the snapshots")
class Ema(JsonOptions):
    """Make models with other EMA profiles from a training's snapshots."""

    sigma_rel: str = option("The σ_rel of the EMA profiles, such as 0.05,0.1,0.2.")
    source: Path = option("The folder of snapshots.", "--from", default=AVERAGES)
    out: Path = option("The folder of the models.", "--out", "-o", metavar="FOLDER", default=Path("models"))


@command(app, "cli.actions.trials.trial_search:search_settings", "checking the points of the search")
class Search(JsonOptions, RayOptions):
    """Search hyperparameters: train and score every point of `search` in params.yaml.

    The models, samples and metrics of the project do not change. The same command resumes an interrupted
    search.
    """

    address: str | None = argument(
        "With --ray: the cluster. [default: sample.address, RAY_ADDRESS, or a local Ray]"
    )
    name: str = option("The name of the search, stored in runs/search/NAME.", default="search")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.address and not self.ray:
            raise UsageError("ADDRESS needs --ray: add it, or leave it out")
        if find_spec("optuna") is None:
            raise UsageError("a search needs Optuna: pip install 'diffctl[search]'")


@command(app, "cli.actions.trials.trial_process:run_trial", name="search-trial", hidden=True)
class SearchTrial(CommandOptions):
    """Run one trial; `diffctl search` and `diffctl verdict` start these processes."""

    folder: Path = argument()
    local: bool = option("Sample in this process, whatever sample.runner is.")


class ImportOptions(JsonOptions):
    """The output of an import."""

    out: Path | None = out_option("Output file. [default: models/NAME.safetensors]", kind=".safetensors")


@command(
    import_app,
    "cli.actions.models.model_formats:import_openai_model",
    "reading the checkpoint",
    name="openai",
)
class ImportOpenai(ImportOptions):
    """Import a published checkpoint without executing code from it."""

    file: Path = argument("A .pt file of guided-diffusion or improved-diffusion.")
    preset: Preset = option("Its architecture.")


@command(
    import_app,
    "cli.actions.models.model_formats:import_diffusers_model",
    "reading the pipeline",
    name="diffusers",
)
class ImportDiffusers(ImportOptions):
    """Import a diffusers pipeline: its network and beta schedule."""

    folder: Path = argument("A pipeline folder with a UNet2DModel.")


@command(
    export_app,
    "cli.actions.models.model_formats:export_diffusers_model",
    "loading the model",
    name="diffusers",
)
class ExportDiffusers(JsonOptions, ModelSourceOptions):
    """Export a pipeline for DDIMPipeline.from_pretrained."""

    folder: Path = argument("The new pipeline folder.")


@command(publish_app, "cli.actions.models.publication:publish_to_hub", "loading the model", name="hub")
class PublishHub(JsonOptions, ModelSourceOptions):
    """Publish a model on the Hugging Face hub: model file, diffusers pipeline, scores, samples, model card.

    It is one commit, and the same content is not uploaded twice. The token is HF_TOKEN, or that of `hf auth
    login`. The samples have the settings of the best cell where no option sets them.
    """

    repo: str = argument("The repository: user/name. It is created if it is missing.")
    license: str | None = option("The licence as the hub names it, such as apache-2.0.", metavar="ID")
    dataset: list[str] | None = option("The training data on the hub: user/name. Repeatable.", metavar="ID")
    private: bool = option("Create a private repository.")
    dry_run: Path | None = option("Write the content to this new folder; upload nothing.", metavar="FOLDER")
    sampling: dict[str, Any] = sampling_options()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+", self.repo):
            raise UsageError(f"REPO {printable(self.repo)} is no name of a repository: give user/name")
        if self.dry_run is None and find_spec("huggingface_hub") is None:
            raise UsageError("the upload needs huggingface_hub: pip install 'diffctl[hf]'")
